//! What a seed shows: the plan with `--dry-run`, disks and digests afterwards.

use crate::context::Outcome;
use crate::error::{Error, Kind};
use crate::inspect::Reason;
use crate::lang::{Lang, consistency_words, plaintext_words};
use crate::{say, units};
use motiongear_manifest::documents::seal::{Basis, BlockCounts, Consistency};
use motiongear_manifest::tree::Digest;
use serde::Serialize;
use uuid::Uuid;

/// What `--dry-run` shows.
#[derive(Debug, Serialize)]
pub struct Plan {
    /// The shipment.
    pub shipment: Uuid,
    /// The site.
    pub site: String,
    /// Nothing is encrypted.
    pub plaintext: bool,
    /// Who will be able to read it: fingerprints to compare with paper.
    pub recipients: Vec<String>,
    /// `io_uring`, `threads`, or `io_uring+threads` where only some of array and sources are on far file systems.
    pub engine: String,
    /// Disks in order.
    pub disks: Vec<PlannedDisk>,
    /// Free on the array, bytes.
    pub array_free_bytes: u64,
    /// What the array would have to hold if nothing compressed, bytes.
    pub array_need_at_most_bytes: u64,
}

/// One disk of the plan.
#[derive(Debug, Serialize)]
pub struct PlannedDisk {
    /// MACHINE/DISK.
    pub disk: String,
    /// Where it is read from.
    pub source: String,
    /// Size, bytes; 0 for an excluded disk.
    pub bytes: u64,
    /// Why it is not copied, if it is not.
    pub excluded: Option<String>,
    /// Bytes that an earlier run has committed.
    pub done_bytes: u64,
    /// What `inspect` would warn of.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cautions: Vec<Reason>,
}

impl PlannedDisk {
    fn warnings(&self, lang: Lang) -> impl Iterator<Item = String> {
        let name = self.disk.clone();
        self.cautions.iter().map(move |reason| {
            let text = reason.text(lang);
            say!(lang, "  ! {name}: {text}", "  ! {name}：{text}")
        })
    }
}

/// What a seed has to show.
#[derive(Debug, Serialize)]
pub struct Seeded {
    /// The plan; alone with `--dry-run`.
    pub plan: Plan,
    /// True if nothing was done.
    pub dry_run: bool,
    /// Disks that are complete.
    pub disks: Vec<SeededDisk>,
    /// Disks that could not be copied to their end.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub failed: Vec<FailedDisk>,
    /// How long it took, seconds.
    pub seconds: u64,
    /// What people should know.
    pub notes: Vec<String>,
}

/// One copied disk.
#[derive(Debug, Serialize)]
pub struct SeededDisk {
    /// MACHINE/DISK.
    pub disk: String,
    /// Size, bytes.
    pub bytes: u64,
    /// What `b3sum` prints on what was read.
    pub digest: Digest,
    /// One point in time or not.
    pub consistency: Consistency,
    /// Why.
    pub basis: Basis,
    /// Why it is fuzzy although it was asserted to stand still.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fuzzy_because: Option<String>,
    /// Counts by kind.
    pub blocks: BlockCounts,
    /// Bytes that the source could not give.
    pub unreadable_bytes: u64,
    /// Bytes read by this run.
    pub read_bytes: u64,
    /// Bytes that an earlier run had copied.
    pub skipped_bytes: u64,
}

/// One disk that could not be copied.
#[derive(Debug, Serialize)]
pub struct FailedDisk {
    /// MACHINE/DISK.
    pub disk: String,
    /// What sort of error: `failed`, `untrusted` …
    pub kind: String,
    /// Why.
    pub error: String,
    /// What to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
    #[serde(skip)]
    sort: Kind,
    /// The error without its cause, which may name the disk.
    #[serde(skip)]
    reason: String,
}

impl FailedDisk {
    /// Of this disk, for this reason.
    pub fn new(disk: String, error: &Error) -> FailedDisk {
        let kind = format!("{:?}", error.kind).to_lowercase();
        let said = error.to_string();
        let why = said.split("\n  next: ").next().unwrap_or_default().to_owned();
        FailedDisk { disk, kind, error: why, next: error.next.clone(), sort: error.kind, reason: error.message.clone() }
    }

    /// As the error of a run that had no other disk.
    pub fn into_error(self) -> Error {
        let error = Error::new(self.sort, self.error);
        match self.next {
            Some(next) => error.next(next),
            None => error,
        }
    }

    /// Whether both failed for one reason.
    pub fn is_as(&self, other: &FailedDisk) -> bool {
        self.reason == other.reason
    }

    fn is_distrust(&self) -> bool {
        self.sort == Kind::Untrusted
    }

    fn lines(&self, lang: Lang) -> Vec<String> {
        let FailedDisk { disk, error, next, .. } = self;
        let mut lines = vec![say!(lang, "  NOT COPIED: {disk}: {error}", "  未复制：{disk}：{error}")];
        lines.extend(next.as_ref().map(|next| say!(lang, "    next: {next}", "    下一步：{next}")));
        lines
    }
}

impl Outcome for Seeded {
    fn summary(&self, lang: Lang) -> String {
        let &Plan { shipment, ref site, plaintext, ref recipients, ref disks, .. } = &self.plan;
        let mut lines = vec![say!(lang, "Shipment {shipment} of site {site}", "批次 {shipment}，站点 {site}")];
        lines.extend(plaintext.then(|| plaintext_words(lang)));
        for recipient in recipients {
            lines.push(say!(
                lang,
                "  readable by recipient {recipient} (compare with paper)",
                "  接收方指纹 {recipient}（请与纸面核对）"
            ));
        }
        if self.dry_run {
            for disk in disks {
                let (name, source, size) = (&disk.disk, &disk.source, units::size(disk.bytes));
                lines.push(match &disk.excluded {
                    Some(reason) => say!(lang, "  {name}: not copied: {reason}", "  {name}：不复制：{reason}"),
                    None => {
                        let done = units::size(disk.done_bytes);
                        say!(
                            lang,
                            "  {name}: {size} from {source}, {done} done already",
                            "  {name}：{size}，来自 {source}，已完成 {done}"
                        )
                    }
                });
            }
            let (need, free) =
                (units::size(self.plan.array_need_at_most_bytes), units::size(self.plan.array_free_bytes));
            lines.push(say!(
                lang,
                "  needs at most {need} on the array, {free} are free",
                "  移动存储最多需要 {need}，可用 {free}"
            ));
            lines.extend(disks.iter().flat_map(|disk| disk.warnings(lang)));
            lines.extend(self.failed.iter().flat_map(|failed| failed.lines(lang)));
            lines.extend(self.notes.iter().map(|note| format!("  {note}")));
            lines.push(say!(lang, "Nothing was done: dry run.", "试运行，未做任何更改。"));
            return lines.join("\n");
        }
        for disk in &self.disks {
            let (name, size, digest) = (&disk.disk, units::size(disk.bytes), disk.digest);
            let BlockCounts { stored, zero, unreadable } = disk.blocks;
            let kind = consistency_words(lang, disk.consistency, disk.basis);
            lines.push(say!(
                lang,
                "  {name}: {size}, {kind}; blocks: {stored} stored, {zero} zero, {unreadable} unreadable",
                "  {name}：{size}，{kind}；块：存储 {stored}，全零 {zero}，不可读 {unreadable}"
            ));
            lines.push(say!(lang, "    digest {digest}", "    摘要 {digest}"));
            if let Some(why) = &disk.fuzzy_because {
                lines.push(say!(
                    lang,
                    "    FUZZY, although it was asserted to stand still: {why}",
                    "    模糊：虽声明保持不变，但 {why}"
                ));
            }
            let skipped = units::size(disk.skipped_bytes);
            if disk.skipped_bytes > 0 {
                lines.push(say!(
                    lang,
                    "    {skipped} were copied earlier and skipped",
                    "    先前已复制 {skipped}，本次跳过"
                ));
            }
            if disk.unreadable_bytes > 0 {
                let bytes = units::size(disk.unreadable_bytes);
                lines.push(say!(
                    lang,
                    "    UNREADABLE: {bytes} at the source count as zeros",
                    "    不可读：源端 {bytes} 按零计"
                ));
            }
        }
        lines.extend(disks.iter().flat_map(|disk| disk.warnings(lang)));
        lines.extend(self.notes.iter().map(|note| format!("  {note}")));
        let time = units::duration(self.seconds);
        if !self.failed.is_empty() {
            lines.extend(self.failed.iter().flat_map(|failed| failed.lines(lang)));
            let (complete, all) = (self.disks.len(), self.disks.len() + self.failed.len());
            let without: Vec<String> = self.failed.iter().map(|failed| format!("--without {}", failed.disk)).collect();
            let without = without.join(" ");
            lines.push(say!(
                lang,
                "{complete} of {all} disks are on the array ({time}). Next: run the same command again; it resumes, and asks only for what is open.\n  To go without the rest: motiongear seal ARRAY --key KEY {without} --reason TEXT",
                "{all} 块磁盘中 {complete} 块已写入移动存储（{time}）。下一步：再次运行同一命令，只续传未完成的磁盘。\n  如不再等待其余磁盘：motiongear seal ARRAY --key KEY {without} --reason TEXT"
            ));
            return lines.join("\n");
        }
        lines.push(say!(
            lang,
            "All disks are on the array ({time}). Next: motiongear seal ARRAY --key KEY",
            "所有磁盘已写入移动存储（{time}）。下一步：motiongear seal ARRAY --key KEY"
        ));
        lines.join("\n")
    }
    fn incomplete(&self) -> bool {
        !self.failed.is_empty() || self.disks.iter().any(|disk| disk.unreadable_bytes > 0)
    }
    fn exit_code(&self) -> u8 {
        let unreadable = self.disks.iter().any(|disk| disk.unreadable_bytes > 0);
        let distrust = !self.failed.is_empty() && self.failed.iter().all(FailedDisk::is_distrust);
        match (distrust && !unreadable, self.incomplete()) {
            (true, _) => Kind::Untrusted.exit_code(),
            (false, true) => Kind::Incomplete.exit_code(),
            (false, false) => 0,
        }
    }
}

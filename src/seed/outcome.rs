//! What a seed shows: the plan with `--dry-run`, disks and digests afterwards.

use crate::context::Outcome;
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
    /// Disks as they are now.
    pub disks: Vec<SeededDisk>,
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
        lines.push(say!(
            lang,
            "All disks are on the array ({time}). Next: motiongear seal ARRAY --key KEY",
            "所有磁盘已写入移动存储（{time}）。下一步：motiongear seal ARRAY --key KEY"
        ));
        lines.join("\n")
    }
    fn incomplete(&self) -> bool {
        self.disks.iter().any(|disk| disk.unreadable_bytes > 0)
    }
}

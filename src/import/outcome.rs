//! What an import has to show for itself.

use crate::context::Outcome;
use crate::copy::fetch::Damage;
use crate::lang::Lang;
use crate::say;
use crate::trust::Compared;
use crate::units::size;
use crate::volume::look::{Look, Verdict};
use crate::volume::readback::{Counts, Mode};
use jiff::Timestamp;
use motiongear_manifest::catalogue::UnreadableRange;
use motiongear_manifest::documents::seal::{BlockCounts, Consistency};
use motiongear_manifest::tree::Digest;
use serde::Serialize;
use uuid::Uuid;

/// Damaged blocks and unreadable ranges that are listed for each disk; the ledger has all of them.
pub const MAX_LISTED: u32 = 10_000;

/// How a disk's import stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Complete; finished by this run.
    Imported,
    /// Complete before this run, which only looked.
    AlreadyImported,
    /// Blocks are damaged; head and tail are withheld, nothing boots from it.
    Damaged,
    /// The source had unreadable blocks; head and tail are withheld until that is accepted.
    Unreadable,
}

/// One disk.
#[derive(Debug, Clone, Serialize)]
pub struct DiskOutcome {
    /// The machine's name.
    pub machine: String,
    /// The disk's name.
    pub disk: String,
    /// The disk's UUID.
    pub uuid: Uuid,
    /// File or device.
    pub volume: String,
    /// Its size, bytes.
    pub volume_bytes: u64,
    /// Size of the disk, bytes.
    pub bytes: u64,
    /// Bytes of a block.
    pub block_bytes: u32,
    /// Bytes of a sector of the disk, where they are not 512.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sector_bytes: Option<u64>,
    /// Which generation of the disk.
    pub generation: u32,
    /// One point in time or not.
    pub consistency: Consistency,
    /// How it stands.
    pub state: State,
    /// Blocks by kind, as sealed.
    pub blocks: BlockCounts,
    /// Blocks that an earlier run had committed.
    pub resumed_from_block: u64,
    /// Bytes that this run wrote.
    pub written_bytes: u64,
    /// How much was read back.
    pub readback: Mode,
    /// What read-back found.
    #[serde(flatten)]
    pub counts: Counts,
    /// Read-back was answered by a cache of this host.
    pub through_cache: bool,
    /// How many blocks are not on the volume.
    pub damaged: u64,
    /// Which, the first 10000.
    pub damaged_blocks: Vec<Damage>,
    /// What the source could not give, the first 10000 ranges.
    pub unreadable_ranges: Vec<UnreadableRange>,
    /// The head was released in spite of them.
    pub accepted_unreadable: bool,
    /// Where the cloud keeps what was proven, whatever becomes of the volume.
    pub recovery_point: Option<String>,
    /// When head and tail were released; before this run, where the disk was imported already.
    pub finished_at: Option<Timestamp>,
    /// What this run saw of a volume that was complete before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub look: Option<Look>,
    /// What the seal says.
    pub sealed_digest: Digest,
    /// Of the volume, merged from its leaves; none while it is withheld.
    pub digest: Option<Digest>,
    /// Source equals target, and no block was trusted.
    pub proven: bool,
}

/// The whole run.
#[derive(Debug, Clone, Serialize)]
pub struct Imported {
    /// The shipment.
    pub shipment: Uuid,
    /// The site's name.
    pub site: String,
    /// BLAKE3 of `seal.json`.
    pub seal: Digest,
    /// By what it is known to be the seal that left the branch.
    pub compared: Compared,
    /// Its spoken code.
    pub code: String,
    /// NAME@SITE.
    pub signer: String,
    /// Of the signing key.
    pub fingerprint: String,
    /// At which time the signer's validity was judged, where it was set.
    pub verify_time: Option<Timestamp>,
    /// How bytes moved.
    pub engine: &'static str,
    /// What people should know.
    pub notes: Vec<String>,
    /// Each disk.
    pub disks: Vec<DiskOutcome>,
}

impl Outcome for Imported {
    fn summary(&self, lang: Lang) -> String {
        let (site, code, signer) = (&self.site, &self.code, &self.signer);
        let mut lines = vec![say!(
            lang,
            "Shipment {} of {site}, seal {code}, signed by {signer}",
            "批次 {}（站点 {site}），核对码 {code}，签名人 {signer}",
            self.shipment
        )];
        lines.extend(self.notes.iter().map(|note| say!(lang, "Note: {note}", "注意：{note}")));
        for disk in &self.disks {
            lines.push(disk.line(lang));
            lines.extend(disk.details(lang));
        }
        lines.join("\n")
    }

    fn incomplete(&self) -> bool {
        self.disks
            .iter()
            .any(|disk| matches!(disk.state, State::Damaged | State::Unreadable) || disk.blocks.unreadable > 0)
    }
}

impl DiskOutcome {
    fn line(&self, lang: Lang) -> String {
        let (name, volume, bytes) = (format!("{}/{}", self.machine, self.disk), &self.volume, size(self.bytes));
        match self.state {
            State::Imported => {
                say!(lang, "{name}: imported into {volume} ({bytes})", "{name}：已导入 {volume}（{bytes}）")
            }
            State::AlreadyImported => {
                let at = self.finished_at.map(|at| at.to_string()).unwrap_or_default();
                say!(
                    lang,
                    "{name}: imported into {volume} ({bytes}) by an earlier run, complete since {at}",
                    "{name}：此前的运行已导入 {volume}（{bytes}），完成于 {at}"
                )
            }
            State::Damaged => {
                let count = self.damaged;
                say!(
                    lang,
                    "{name}: {count} damaged blocks are not on {volume}; its head is withheld, nothing boots from it",
                    "{name}：{count} 个损坏的块未写入 {volume}；卷首已扣留，不可启动"
                )
            }
            State::Unreadable => {
                let count = self.blocks.unreadable;
                say!(
                    lang,
                    "{name}: {count} blocks were unreadable at the source; the head of {volume} is withheld (--accept-unreadable releases it)",
                    "{name}：源端有 {count} 个块无法读取；{volume} 的卷首已扣留（--accept-unreadable 可放行）"
                )
            }
        }
    }

    fn details(&self, lang: Lang) -> Vec<String> {
        let mut lines = Vec::new();
        if let Some(digest) = &self.digest {
            let Counts { re_read, holes, trusted } = self.counts;
            let past = self.state == State::AlreadyImported;
            lines.push(say!(lang, "  digest {digest}", "  摘要 {digest}"));
            lines.push(match past {
                false => say!(
                    lang,
                    "  blocks re-read {re_read} (holes {holes}), trusted {trusted}",
                    "  回读块数 {re_read}（其中空洞 {holes}），未回读（信任）块数 {trusted}"
                ),
                true => say!(
                    lang,
                    "  on record: blocks re-read {re_read} (holes {holes}), trusted {trusted}",
                    "  记录：回读块数 {re_read}（其中空洞 {holes}），未回读（信任）块数 {trusted}"
                ),
            });
            lines.extend(self.look.as_ref().map(|look| look.words(lang)));
            lines.extend((!past).then(|| match self.proven {
                true => say!(lang, "  source = target, every block re-read", "  源端 = 目标，全部块已回读"),
                false => say!(
                    lang,
                    "  equals the sealed digest as far as blocks were re-read",
                    "  在已回读的范围内与封签摘要一致"
                ),
            }));
        }
        if let Some(point) = &self.recovery_point {
            lines.push(say!(lang, "  recovery point {point}", "  恢复点 {point}"));
        }
        if let Some(bytes) = self.sector_bytes {
            lines.push(say!(
                lang,
                "  the disk had sectors of {bytes} bytes: attach the volume with such sectors",
                "  该磁盘扇区为 {bytes} 字节：挂接该卷时须使用相同扇区大小"
            ));
        }
        if self.through_cache {
            lines.push(say!(lang, "  read back through a cache", "  回读经过缓存"));
        }
        if self.accepted_unreadable {
            let count = self.blocks.unreadable;
            lines.push(say!(
                lang,
                "  {count} blocks were unreadable at the source and count as zeros; accepted",
                "  源端有 {count} 个块无法读取，按零计；已接受"
            ));
        }
        for damage in self.damaged_blocks.iter().take(20) {
            let (block, offset, why) = (damage.block, damage.offset, &damage.why);
            lines.push(say!(lang, "  block {block} at byte {offset}: {why}", "  块 {block}，字节 {offset}：{why}"));
        }
        if self.damaged > 20 {
            let more = self.damaged - 20;
            lines.push(say!(
                lang,
                "  and {more} more: see --json and the ledger",
                "  另有 {more} 个：见 --json 与台账"
            ));
        }
        lines
    }
}

impl Look {
    fn words(&self, lang: Lang) -> String {
        let (at, compared) = (&self.looked_at, self.compared_blocks);
        match &self.verdict {
            Verdict::AsProven => say!(
                lang,
                "  looked at now ({at}): head, tail and samples are as proven, {compared} blocks compared",
                "  本次查看（{at}）：卷首、卷尾与抽样块均与已证明内容一致，共比较 {compared} 块"
            ),
            Verdict::Accepted { check } => {
                let reason = check.reason.as_deref().unwrap_or_default();
                say!(
                    lang,
                    "  not compared now: its difference was accepted ({reason})",
                    "  本次未比较：其差异已被接受（{reason}）"
                )
            }
            Verdict::MovedOn { shipment } => say!(
                lang,
                "  not compared now: an import of shipment {shipment} was begun into it later",
                "  本次未比较：此后已开始向其导入批次 {shipment}"
            ),
            _ => self.fault().map(|fault| format!("  {fault}")).unwrap_or_default(),
        }
    }
}

//! Plain lines, and JSON lines: for logs, pipes and terminals that are none.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;

use super::{DiskSnapshot, MediumKind, Monitor, Progress, Snapshot, Waiting, Watch};
use crate::lang::Lang;
use crate::screen::{complain, safe_json};
use crate::{say, units};

/// How often is looked; phase changes show this soon.
const LOOK: Duration = Duration::from_millis(500);
/// At most one line in this time, unless the phase changes. It grows with the job: a day's log stays readable.
const FIRST_PAUSE: Duration = Duration::from_secs(5);
const LAST_PAUSE: Duration = Duration::from_secs(60);
/// A medium may take its time; this many seconds without an answer are shown.
const SILENCE_SHOWN: u64 = 5;

/// One line about all disks now and then.
pub(super) struct Lines {
    lang: Lang,
}

impl Lines {
    pub(super) fn new(lang: Lang) -> Lines {
        Lines { lang }
    }
}

impl Monitor for Lines {
    fn watch(&self, progress: Arc<Progress>) -> Watch {
        let lang = self.lang;
        let mut pace = Pace::default();
        Watch::every(LOOK, progress, move |snapshot, last| {
            if pace.due(snapshot, last, Instant::now()) {
                complain(&line(snapshot, lang));
            }
        })
    }

    fn note(&self, text: &str) {
        complain(text);
    }
}

/// One JSON object a line: `{"progress": …}` every second, `{"note": …}`.
pub(super) struct Json;

impl Monitor for Json {
    fn watch(&self, progress: Arc<Progress>) -> Watch {
        Watch::every(Duration::from_secs(1), progress, |snapshot, last| {
            complain(&safe_json(&json!({ "progress": snapshot, "finished": last }).to_string()));
        })
    }

    fn note(&self, text: &str) {
        complain(&safe_json(&json!({ "note": text }).to_string()));
    }
}

#[derive(Default)]
pub(super) struct Pace {
    phase: String,
    said: Option<Instant>,
    began: Option<Instant>,
}

impl Pace {
    pub(super) fn due(&mut self, snapshot: &Snapshot, last: bool, now: Instant) -> bool {
        let began = *self.began.get_or_insert(now);
        let pause = (now.saturating_duration_since(began) / 20).clamp(FIRST_PAUSE, LAST_PAUSE);
        let new_phase = snapshot.phase != self.phase;
        if !last && !new_phase && self.said.is_some_and(|said| now.saturating_duration_since(said) < pause) {
            return false;
        }
        self.phase.clone_from(&snapshot.phase);
        self.said = Some(now);
        true
    }
}

/// `seed: 12.3 % of 1.5 GiB · 80 MiB/s · 5m 00s to go · zero 40 %, stored 35 %`.
pub(crate) fn line(snapshot: &Snapshot, lang: Lang) -> String {
    let total = &snapshot.total;
    let percent = floor_percent(total.fraction());
    let size = units::size(total.bytes);
    let phase = phase_words(&snapshot.phase, lang);
    // Short steps that are no share of the bytes: "0.0 %" as the last word would look like a failure.
    if ["release", "envelopes", "manifest"].contains(&snapshot.phase.as_str()) {
        return phase + &silent(&snapshot.waiting, lang);
    }
    let mut line = say!(lang, "{phase}: {percent} % of {size}", "{phase}：{size} 的 {percent} %");
    if total.bytes_per_second > 0 {
        line.push_str(&format!(" · {}/s", units::size(total.bytes_per_second)));
    }
    if let Some(eta) = total.eta_seconds.filter(|_| total.position() < total.bytes) {
        let eta = units::duration(eta);
        line.push_str(&say!(lang, " · {eta} to go", " · 还需 {eta}"));
    }
    line.push_str(&shares(total, lang));
    line.push_str(&silent(&snapshot.waiting, lang));
    line
}

/// What has not answered for long enough to be looked at.
pub(super) fn silent(waiting: &[Waiting], lang: Lang) -> String {
    let mut text = String::new();
    for Waiting { kind, name, seconds } in waiting.iter().filter(|waiting| waiting.seconds >= SILENCE_SHOWN) {
        let what = match kind {
            // Named by its disk.
            MediumKind::Source => name.clone(),
            MediumKind::Array => say!(lang, "array {name}", "移动存储 {name}"),
            MediumKind::Volume => say!(lang, "volume {name}", "卷 {name}"),
        };
        text.push_str(&say!(lang, " · {what} has not answered for {seconds} s", " · {what} 已 {seconds} 秒没有应答"));
    }
    text
}

/// The phase in the reader's language; what has no words here stays as it is.
pub(super) fn phase_words(phase: &str, lang: Lang) -> String {
    let zh = match phase {
        "seed" => "复制",
        "verify" => "校验",
        "import" => "导入",
        "restore" => "恢复",
        "scan" => "扫描",
        "erase" => "擦除",
        "read-back" => "回读",
        "release" => "放行卷首",
        "envelopes" => "擦除密钥信封",
        "packs" => "擦除数据包",
        "manifest" => "擦除清单",
        other => other,
    };
    say!(lang, "{phase}", "{zh}")
}

/// 100 % is only said when all is done.
pub(super) fn floor_percent(fraction: f64) -> String {
    format!("{:.1}", (fraction * 1000.0).floor() / 10.0)
}

/// Zero, stored, skipped, and what went wrong; only what there is.
pub(super) fn shares(disk: &DiskSnapshot, lang: Lang) -> String {
    let mut text = String::new();
    if let Some(zero) = disk.zero_percent().filter(|_| disk.zero > 0) {
        text.push_str(&say!(lang, " · zero {zero:.0} %", " · 全零 {zero:.0} %"));
    }
    if let Some(percent) = disk.stored_percent().filter(|_| disk.stored > 0) {
        let stored = units::size(disk.stored);
        text.push_str(&say!(lang, " · stored {stored} ({percent:.0} %)", " · 存储 {stored}（{percent:.0} %）"));
    }
    if disk.skipped > 0 {
        let skipped = units::size(disk.skipped);
        text.push_str(&say!(lang, " · done before {skipped}", " · 先前已完成 {skipped}"));
    }
    if disk.unreadable > 0 {
        let unreadable = units::size(disk.unreadable);
        text.push_str(&say!(lang, " · UNREADABLE {unreadable}", " · 无法读取 {unreadable}"));
    }
    if disk.damaged > 0 {
        let damaged = units::size(disk.damaged);
        text.push_str(&say!(lang, " · DAMAGED {damaged}", " · 已损坏 {damaged}"));
    }
    text
}

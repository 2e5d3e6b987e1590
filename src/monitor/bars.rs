//! Bars on a terminal; the only file that knows indicatif.

use std::sync::Arc;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::lines::{floor_percent, shares, silent};
use super::{DiskSnapshot, Monitor, Progress, Watch};
use crate::lang::Lang;
use crate::screen::safe;
use crate::{say, units};

const EVERY: Duration = Duration::from_millis(200);
/// More bars than this do not fit on a screen: the rest shows in the total.
const MOST_BARS: usize = 20;

pub(super) struct Bars {
    lang: Lang,
    all: MultiProgress,
}

impl Bars {
    pub(super) fn new(lang: Lang) -> Bars {
        Bars { lang, all: MultiProgress::with_draw_target(ProgressDrawTarget::stderr()) }
    }

    fn bar(&self, bytes: u64) -> ProgressBar {
        let bar = self.all.add(ProgressBar::new(bytes));
        // The template is a constant of ours; should indicatif ever refuse it, its default style does.
        if let Ok(style) = ProgressStyle::with_template("{prefix:24!} [{bar:24}] {wide_msg}") {
            bar.set_style(style.progress_chars("=> "));
        }
        bar
    }
}

impl Monitor for Bars {
    fn watch(&self, progress: Arc<Progress>) -> Watch {
        let lang = self.lang;
        let bars: Vec<_> = match progress.disks.len() {
            1 => Vec::new(),
            _ => progress.disks.iter().take(MOST_BARS).map(|disk| self.bar(disk.bytes)).collect(),
        };
        let total = self.bar(progress.disks.iter().map(|disk| disk.bytes).fold(0, u64::saturating_add));
        Watch::every(EVERY, progress, move |snapshot, last| {
            for (bar, disk) in bars.iter().zip(&snapshot.disks) {
                bar.set_prefix(safe(&disk.name).into_owned());
                show(bar, disk, "", lang, last);
            }
            total.set_prefix(super::lines::phase_words(&snapshot.phase, lang));
            show(&total, &snapshot.total, &silent(&snapshot.waiting, lang), lang, last);
        })
    }

    fn note(&self, text: &str) {
        // Ignored like every failed write to the terminal.
        let _ = self.all.println(safe(text));
    }
}

fn show(bar: &ProgressBar, disk: &DiskSnapshot, more: &str, lang: Lang, last: bool) {
    bar.set_position(disk.position());
    let mut text = format!("{} % {}/s", floor_percent(disk.fraction()), units::size(disk.bytes_per_second));
    if let Some(eta) = disk.eta_seconds.filter(|_| disk.position() < disk.bytes) {
        let eta = units::duration(eta);
        text.push_str(&say!(lang, " {eta} to go", " 还需 {eta}"));
    }
    // What a narrow terminal cuts off is the least urgent.
    text.push_str(more);
    text.push_str(&shares(disk, lang));
    bar.set_message(safe(&text).into_owned());
    if last {
        // Left standing: what was reached is worth reading.
        bar.abandon();
    }
}

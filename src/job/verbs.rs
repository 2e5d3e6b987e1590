//! What the verbs `status` (as far as running jobs go), `pause`, `resume`, `limit` do, and how it reads.

use std::path::Path;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::Serialize;

use super::client;
use super::message::{JobStatus, Request, Response, parse_limits};
use crate::copy::throttle::ThrottleState;
use crate::error::{Error, Result};
use crate::lang::Lang;
use crate::monitor::{DiskSnapshot, Snapshot};
use crate::{say, units};

/// The running jobs.
#[derive(Debug, Clone, Serialize)]
pub struct Jobs {
    /// By PID.
    pub jobs: Vec<JobStatus>,
}

/// A job after something was asked of it.
#[derive(Debug, Clone, Serialize)]
pub struct Acted {
    /// What was asked.
    pub asked: Request,
    /// The job since.
    pub job: JobStatus,
}

/// The running jobs of a state directory.
///
/// # Errors
/// The directory cannot be read.
pub fn status(state: &Path) -> Result<Jobs> {
    Ok(Jobs { jobs: client::jobs(state)? })
}

/// Lets a job stand still.
///
/// # Errors
/// As [`super::send`].
pub fn pause(state: &Path, job: Option<u32>) -> Result<Acted> {
    act(state, job, Request::Pause)
}

/// Lets a job go on.
///
/// # Errors
/// As [`super::send`].
pub fn resume(state: &Path, job: Option<u32>) -> Result<Acted> {
    act(state, job, Request::Resume)
}

/// Changes limits, as typed; `off` lifts one.
///
/// # Errors
/// A limit that is none, and as [`super::send`].
pub fn limit(state: &Path, job: Option<u32>, read: Option<&str>, cpu: Option<&str>) -> Result<Acted> {
    parse_limits(read, cpu)?;
    act(state, job, Request::Limit { read: read.map(str::to_owned), cpu: cpu.map(str::to_owned) })
}

/// Stops a job gracefully.
///
/// # Errors
/// As [`super::send`].
pub fn stop(state: &Path, job: Option<u32>) -> Result<Acted> {
    act(state, job, Request::Stop)
}

fn act(state: &Path, job: Option<u32>, request: Request) -> Result<Acted> {
    match client::send(state, job, &request)? {
        Response::Job(job) => Ok(Acted { asked: request, job: *job }),
        Response::Error(refusal) => Err(Error::failed(refusal)),
    }
}

impl Jobs {
    /// For people.
    pub fn render(&self, lang: Lang) -> String {
        if self.jobs.is_empty() {
            return say!(lang, "No job is running.", "没有正在运行的任务。");
        }
        self.jobs.iter().map(|job| job.render(lang)).collect::<Vec<_>>().join("\n")
    }
}

impl Acted {
    /// For people.
    pub fn render(&self, lang: Lang) -> String {
        let pid = self.job.pid;
        let said = match &self.asked {
            Request::Status => String::new(),
            Request::Pause => say!(lang, "Job {pid} is paused.\n", "任务 {pid} 已暂停。\n"),
            Request::Resume => say!(lang, "Job {pid} goes on.\n", "任务 {pid} 继续运行。\n"),
            Request::Limit { .. } => say!(lang, "Limits of job {pid} are changed.\n", "任务 {pid} 的限制已更改。\n"),
            Request::Stop => {
                say!(
                    lang,
                    "Job {pid} is stopping; the same command resumes.\n",
                    "任务 {pid} 正在停止；重新运行同一命令即可继续。\n"
                )
            }
        };
        said + &self.job.render(lang)
    }
}

impl JobStatus {
    /// For people, several lines.
    pub fn render(&self, lang: Lang) -> String {
        let (pid, verb, subject, since) = (self.pid, &self.verb, &self.subject, local(self.started_at));
        let mut lines = vec![say!(
            lang,
            "Job {pid}: {verb} {subject}, since {since}",
            "任务 {pid}：{verb} {subject}，开始于 {since}"
        )];
        if let Some(reason) = &self.silent {
            lines.push(say!(lang, "  does not answer: {reason}", "  没有应答：{reason}"));
        }
        if let Some(throttle) = &self.throttle {
            lines.extend(limits(throttle, lang).into_iter().map(|line| format!("  {line}")));
        }
        if let Some(progress) = &self.progress {
            lines.extend(counters(progress, lang).into_iter().map(|line| format!("  {line}")));
        }
        lines.join("\n")
    }
}

/// By this host's wall clock, to the minute.
fn local(at: Timestamp) -> String {
    at.to_zoned(TimeZone::system()).strftime("%Y-%m-%d %H:%M").to_string()
}

fn limits(state: &ThrottleState, lang: Lang) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(reason) = &state.stopping {
        lines.push(say!(lang, "stopping {reason}", "正在停止（{reason}）"));
    } else if state.paused {
        lines.push(say!(lang, "PAUSED", "已暂停"));
    }
    let read = match state.read_bytes_per_second {
        Some(0) => say!(lang, "reading stands still", "读取静止"),
        Some(rate) => {
            let rate = units::size(rate);
            say!(lang, "reads at most {rate}/s", "读取上限 {rate}/s")
        }
        None => say!(lang, "reads without limit", "读取不限速"),
    };
    let cpu = match state.cpu_percent {
        Some(percent) => say!(lang, "CPU at most {percent} %", "CPU 上限 {percent} %"),
        None => say!(lang, "CPU without limit", "CPU 不限"),
    };
    lines.push(format!("{read} · {cpu}"));
    if let Some(window) = &state.window {
        lines.push(say!(lang, "window {window}", "时间窗口 {window}"));
    }
    if let Some(at) = state.next_change.map(local) {
        lines.push(say!(lang, "next change of the window: {at}", "时间窗口下次变化：{at}"));
    }
    if let Some(guard) = &state.guard
        && let Some(ceiling) = guard.ceiling_bytes_per_second.map(units::size)
    {
        let (disk, millis) = (guard.disk.as_deref().unwrap_or("-"), guard.latency_millis);
        lines.push(say!(
            lang,
            "latency guard holds {ceiling}/s (disk {disk}: {millis:.0} ms)",
            "延迟保护：限制为 {ceiling}/s（磁盘 {disk}：{millis:.0} 毫秒）"
        ));
    }
    lines
}

fn counters(progress: &Snapshot, lang: Lang) -> Vec<String> {
    let mut lines = vec![crate::monitor::line(progress, lang)];
    if progress.disks.len() > 1 {
        lines.extend(progress.disks.iter().map(|disk| counter(disk, lang)));
    }
    lines
}

fn counter(disk: &DiskSnapshot, lang: Lang) -> String {
    let snapshot = Snapshot {
        verb: String::new(),
        phase: disk.name.clone(),
        elapsed_seconds: 0.0,
        total: disk.clone(),
        disks: Vec::new(),
        waiting: Vec::new(),
    };
    format!("  {}", crate::monitor::line(&snapshot, lang))
}

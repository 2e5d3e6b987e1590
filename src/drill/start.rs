//! `drill start`: makes what a drill needs, hands it to the keeper, and tells what became of it.

use super::adapt::APPLIANCE_BYTES;
use super::folder::Folder;
use super::here::{RESERVED_BYTES, free};
use super::machine::accel_words;
use super::plan::{Options, Plan, plan};
use super::record::{AdaptState, Adaptation, Base, Course, Drill, Sign, State};
use super::show::Status;
use super::{end, running};
use crate::context::{Context, Outcome};
use crate::error::{Error, IoContext, Result};
use crate::io::create_dirs_durably;
use crate::lang::Lang;
use crate::say;
use crate::units::size;
use serde::Serialize;
use std::fs::File;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// So long a machine may stand still for want of room on this host before `start` leaves it to people.
const STANDS_LIMIT: Duration = Duration::from_secs(30);
/// Between two looks at the course.
const LOOK: Duration = Duration::from_millis(200);

/// What became of it.
#[derive(Debug, Clone, Serialize)]
pub struct Started {
    /// What was planned.
    pub drill: Drill,
    /// How it went; none in a dry run.
    pub course: Option<Course>,
}

/// Boots a machine's recovery point, or what is sealed of it.
///
/// # Errors
/// It cannot be planned or made; QEMU does not start. Nothing is left over then.
pub fn run(context: &Context, options: &Options) -> Result<Started> {
    let Plan { drill, places, locks } = plan(context, options)?;
    let folder = Folder::of(&context.ledger, drill.drill);
    let room = free(&folder)?;
    let needed = 2 * RESERVED_BYTES + if drill.adapt.is_some() { APPLIANCE_BYTES } else { 0 };
    if room < needed {
        return Err(Error::failed(format!(
            "State directory: expected {} free for what the machine writes, found {}",
            size(needed),
            size(room)
        ))
        .next("make room there"));
    }
    if context.dry_run {
        return Ok(Started { drill, course: None });
    }
    create_dirs_durably(folder.path(), 0o700)?;
    let lock = folder
        .hold(Duration::ZERO)?
        .ok_or_else(|| Error::failed("Drill: expected a lock of its own, found it held"))?;
    folder.put_drill(&drill)?;
    context.monitor.note(&say!(
        context.lang,
        "Drill {}: preparing {} disk(s)",
        "演练 {}：正在准备 {} 块磁盘",
        drill.drill,
        drill.disks.len()
    ));
    let made = || -> Result<Child> {
        for (place, disk) in places.iter().zip(&drill.disks) {
            if let Base::Snapshot { point, .. } | Base::Volume { point, .. } = &disk.base {
                place.make_clone(point, drill.drill)?;
            }
        }
        running::prepare(&folder, &drill)?;
        keeper(context, &folder, lock)
    };
    let mut child = match made() {
        Ok(child) => child,
        Err(error) => return Err(undo(context, folder, &drill, error)),
    };
    let course = follow(context, &folder, &drill, &mut child)?;
    drop(locks);
    // That it cannot be adapted is something to know of a machine: it stays, with what the converter said, until its end.
    if course.state == State::Failed && !course.is_adapted(AdaptState::Failed) {
        let words = course.words.unwrap_or_else(|| "its keeper ended".into());
        // It waits for the keeper to be gone.
        let _ = child.wait();
        return Err(undo(context, folder, &drill, Error::failed(format!("Drill of {}: {words}", drill.machine))));
    }
    Ok(Started { drill, course: Some(course) })
}

/// Starts the keeper, which gets the lock as its standard input: not for one moment is the drill nobody's.
fn keeper(context: &Context, folder: &Folder, lock: File) -> Result<Child> {
    let mut command = Command::new("/proc/self/exe");
    command.arg("--quiet").arg("--state").arg(context.ledger.state()).args(["drill-keeper", &folder.id.to_string()]);
    command.args(context.clouds.insecure_http.then_some("--insecure-http"));
    command.stdin(Stdio::from(lock)).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().context(|| format!("Drill {}: its keeper", folder.id))
}

/// Looks until it is known whether the machine came up.
fn follow(context: &Context, folder: &Folder, drill: &Drill, child: &mut Child) -> Result<Course> {
    let (mut told, mut adapts) = (false, false);
    let mut stands: Option<Instant> = None;
    loop {
        let ended = child.try_wait().context(|| "Keeper of the drill".into())?;
        let course = folder.course()?;
        if let Some(course) = &course {
            if course.is_judged() {
                return Ok(course.clone());
            }
            match (course.stands, stands) {
                (true, None) => {
                    stands = Some(Instant::now());
                    context.monitor.note(&stands_words(context.lang));
                }
                (true, Some(since)) if since.elapsed() >= STANDS_LIMIT => return Ok(course.clone()),
                (true, Some(_)) => {}
                (false, _) => stands = None,
            }
            if !adapts && course.is_adapted(AdaptState::Running) {
                adapts = true;
                context.monitor.note(&say!(
                    context.lang,
                    "{} adapts its clone; that takes some minutes",
                    "{} 正在适配其克隆，需要几分钟",
                    drill.adapt.as_ref().map(|adapt| adapt.by.as_str()).unwrap_or_default()
                ));
            }
            if let (State::Running, false, Some(screen)) = (course.state, told, &course.screen) {
                told = true;
                context.monitor.note(&say!(
                    context.lang,
                    "It boots; look at its screen: vncviewer {}",
                    "正在启动；查看屏幕：vncviewer {}",
                    screen.display()
                ));
            }
        }
        if let Some(status) = ended {
            // What it wrote last counts.
            return match folder.course()? {
                Some(course) if course.is_judged() => Ok(course),
                _ => Err(Error::failed(format!(
                    "Drill {}: expected its keeper to stay, found it gone ({status})",
                    drill.drill
                ))
                .next(format!("remove what it left: motiongear drill end {}", drill.drill))),
            };
        }
        std::thread::sleep(LOOK);
    }
}

/// Removes what was made for a drill that never ran. Where that fails, too, the drill stays for `end`.
fn undo(context: &Context, folder: Folder, drill: &Drill, error: Error) -> Error {
    match end::clear(context, &folder, drill).and_then(|_| folder.remove()) {
        Ok(()) => error,
        Err(more) => {
            let next = format!("then remove what it left: motiongear drill end {} ({more})", drill.drill);
            Error::failed(error.to_string()).next(next)
        }
    }
}

impl Outcome for Started {
    fn summary(&self, lang: Lang) -> String {
        let Drill { drill, site_name, machine, firmware, bus, accel, cpus, memory_bytes, .. } = &self.drill;
        let (memory, accel) = (size(*memory_bytes), accel_words(*accel));
        let (firmware, bus) = (firmware.word(), bus.word());
        let mut lines = vec![match self.course {
            None => say!(lang, "Would boot {site_name}/{machine}:", "将启动 {site_name}/{machine}："),
            Some(_) => {
                say!(lang, "Drill {drill} of {site_name}/{machine}:", "演练 {drill}，主机 {site_name}/{machine}：")
            }
        }];
        lines.push(say!(
            lang,
            "  {firmware}, disks on {bus}, {cpus} processor(s) by {accel}, {memory} of memory, {}",
            "  {firmware}，磁盘总线 {bus}，{cpus} 个处理器（{accel}），内存 {memory}，{}",
            match &self.drill.network {
                None => say!(lang, "no network", "无网络"),
                Some(network) => say!(
                    lang,
                    "network {} of drills only, as {}",
                    "演练专用网络 {}，地址 {}",
                    network.name,
                    network.macs()
                ),
            }
        ));
        for disk in &self.drill.disks {
            lines.push(format!("  {}: {}", disk.name, disk.words(lang)));
        }
        let adapted = self.course.as_ref().is_none_or(|course| !course.is_adapted(AdaptState::Failed));
        lines.extend(self.drill.adapt_words(lang).filter(|_| adapted).map(|words| format!("  {words}")));
        lines.extend(self.drill.notes.iter().map(|note| format!("  {note}")));
        let Some(course) = &self.course else { return lines.join("\n") };
        lines.push(result(course, &self.drill, None, lang));
        lines.extend(course.last_lines.iter().map(|line| format!("  | {line}")));
        let remarks = course.adaptation.iter().flat_map(|adaptation| &adaptation.remarks);
        lines.extend(remarks.map(|remark| format!("  {remark}")));
        if course.state == State::Failed || !course.is_judged() {
            lines.push(say!(lang, "Then: motiongear drill end {drill}", "之后：motiongear drill end {drill}"));
            return lines.join("\n");
        }
        if let (State::Running, Some(screen)) = (course.state, &course.screen) {
            let screen = screen.display();
            lines.push(say!(
                lang,
                "It runs on. Its screen: vncviewer {screen}",
                "主机继续运行。屏幕：vncviewer {screen}"
            ));
        }
        lines.push(say!(
            lang,
            "Then: motiongear drill confirm {drill} --passed|--failed …, and motiongear drill end {drill}",
            "之后：motiongear drill confirm {drill} --passed|--failed …，再 motiongear drill end {drill}"
        ));
        lines.join("\n")
    }

    fn incomplete(&self) -> bool {
        self.course.as_ref().is_some_and(|course| course.seen.is_none() || course.unproven_blocks > 0)
    }
}

/// Why a machine stands still, and what to do.
fn stands_words(lang: Lang) -> String {
    let reserved = size(RESERVED_BYTES);
    say!(
        lang,
        "THE MACHINE STANDS STILL: the state directory's file system has less than {reserved} free. Make room there; the machine then goes on, and the time it stood does not count",
        "主机已暂停：状态目录所在文件系统剩余空间不足 {reserved}。请腾出空间，主机随后自动继续；暂停时间不计入"
    )
}

/// Whether it came up, in a sentence; `status` says where the drill stands, if it is not this process that has it.
pub fn result(course: &Course, drill: &Drill, status: Option<Status>, lang: Lang) -> String {
    let mut words = result_without_pause(course, drill, status, lang);
    if course.stood_seconds > 0 && !course.stands {
        let seconds = course.stood_seconds;
        words += &say!(
            lang,
            "; it stood still for {seconds} s for want of room on this host, which do not count",
            "；因本机空间不足曾暂停 {seconds} 秒，不计入"
        );
    }
    words
}

fn result_without_pause(course: &Course, drill: &Drill, status: Option<Status>, lang: Lang) -> String {
    let came = match &course.adaptation {
        None => came_up(course, drill, status, lang),
        Some(Adaptation { by, state, seconds, .. }) => {
            let (came, seconds) = (came_up(course, drill, status, lang), seconds.unwrap_or_default());
            let words = course.words.as_deref().unwrap_or_default();
            match (state, course.state) {
                (AdaptState::Done, State::Failed) => {
                    say!(
                        lang,
                        "ADAPTED by {by} in {seconds} s, and did not start: {words}",
                        "已由 {by} 适配（{seconds} 秒），但未能启动：{words}"
                    )
                }
                (AdaptState::Done, _) => {
                    say!(
                        lang,
                        "ADAPTED by {by} in {seconds} s before it booted. {came}",
                        "启动前已由 {by} 适配（{seconds} 秒）。{came}"
                    )
                }
                (AdaptState::Failed, _) => {
                    say!(lang, "NOT ADAPTED, and never booted: {words}", "适配失败，未曾启动：{words}")
                }
                (AdaptState::Running, _) if status.is_some_and(Status::has_no_keeper) => {
                    say!(
                        lang,
                        "NOT JUDGED: the drill ended while {by} adapted the clone",
                        "未判定：{by} 适配期间演练已结束"
                    )
                }
                (AdaptState::Running, _) => {
                    say!(lang, "It has not booted yet: {by} adapts it", "尚未启动：{by} 正在适配")
                }
            }
        }
    };
    match course.unproven_blocks {
        0 => came,
        blocks => say!(
            lang,
            "{came}; {blocks} BLOCK(S) of the array COULD NOT BE PROVEN, and were errors to it",
            "{came}；移动存储上有 {blocks} 个块无法验证，主机读取时报错"
        ),
    }
}

fn came_up(course: &Course, drill: &Drill, status: Option<Status>, lang: Lang) -> String {
    let within = drill.within_seconds;
    if course.stands {
        return stands_words(lang);
    }
    match (&course.seen, course.state) {
        (Some(seen), _) => {
            let seconds = format!("{:.1}", seen.milliseconds as f64 / 1000.0);
            match seen.sign {
                Sign::Login => say!(lang, "It asked for a login after {seconds} s", "{seconds} 秒后出现登录提示"),
                Sign::Marker => say!(lang, "Its marker was seen after {seconds} s", "{seconds} 秒后出现标记文字"),
            }
        }
        (None, _) if let Some(failure) = &course.failure => {
            let (seconds, line) = (format!("{:.1}", failure.milliseconds as f64 / 1000.0), &failure.line);
            say!(
                lang,
                "IT FAILED after {seconds} s, as its console says: {line}",
                "{seconds} 秒后启动失败，串口显示：{line}"
            )
        }
        (None, _) if course.silent && drill.compute.is_some() => say!(
            lang,
            "NO LOGIN SEEN on its serial console within {within} s: look at its console in the cloud's dashboard",
            "{within} 秒内串口未见登录提示：请在云控制台查看其屏幕"
        ),
        (None, _) if course.silent => say!(
            lang,
            "NO LOGIN SEEN on its serial console within {within} s: look at its picture",
            "{within} 秒内串口未见登录提示：请查看屏幕图片"
        ),
        (None, State::Failed) => {
            let words = course.words.as_deref().unwrap_or_default();
            say!(lang, "It never booted: {words}", "未曾启动：{words}")
        }
        (None, State::Off) if !course.ended_by_request => {
            let words = course.words.as_deref().unwrap_or_default();
            say!(lang, "NO LOGIN SEEN: the machine ended by itself ({words})", "未见登录提示：主机自行结束（{words}）")
        }
        (None, State::Off) => {
            say!(lang, "NOT JUDGED: the drill was ended before a login was seen", "未判定：出现登录提示之前演练已结束")
        }
        (None, _) if status.is_some_and(Status::has_no_keeper) => say!(
            lang,
            "NOT JUDGED: the process that watched the machine was killed before a login was seen",
            "未判定：出现登录提示之前，监视进程已被终止"
        ),
        (None, _) => say!(lang, "It boots", "正在启动"),
    }
}

//! The plan that `inspect --plan-out` writes: complete, commented, and safe to use as it is.

use std::fmt::Write;

use motiongear_manifest::names;

use super::{DiskReport, Inspection, Verdict};
use crate::lang::Lang;
use crate::say;
use crate::units;

pub(super) fn plan(found: &Inspection, lang: Lang) -> String {
    let host = found.host.hostname.clone().filter(|name| names::check_name("Machine name", name).is_ok());
    let host = host.unwrap_or_else(|| "machine".into());
    let at = &found.taken_at;
    let mut out = say!(
        lang,
        "# Plan of a seed, written by 'motiongear inspect' on {host} at {at}. Edit, then: motiongear seed ARRAY --plan FILE\n",
        "# 全量复制计划，由 'motiongear inspect' 于 {at} 在 {host} 上生成。修改后执行：motiongear seed ARRAY --plan FILE\n"
    );
    out += &say!(
        lang,
        r#"
# What the host feels at most. All of it can be changed while the job runs ('motiongear limit').
[limits]
# read = "80MiB"         # bytes per second from all sources together; also "100Mbit"
# cpu = 50               # percent of the whole machine
# jobs = 4               # disks read at once
latency_guard = true     # back off when a source disk answers slowly

# Rates by time of day. The first window that holds now counts; outside all windows the limit above.
# [[window]]
# days = ["mon-fri"]     # mon, tue … sun, ranges; left out: every day
# from = "08:00"
# to = "18:00"           # earlier than from: over midnight
# rate = "20MiB"         # "0" stands still
# zone = "Asia/Shanghai" # left out: the host's own
"#,
        r#"
# 主机所受影响的上限。作业运行中均可更改（'motiongear limit'）。
[limits]
# read = "80MiB"         # 所有源端合计每秒读取量；也可写 "100Mbit"
# cpu = 50               # 占整机 CPU 的百分比
# jobs = 4               # 同时读取的磁盘数
latency_guard = true     # 源盘响应变慢时自动退让

# 按时段限速。取包含当前时刻的第一个时段；不在任何时段内时按上面的限制。
# [[window]]
# days = ["mon-fri"]     # mon、tue … sun，可写范围；省略表示每天
# from = "08:00"
# to = "18:00"           # 早于 from 表示跨午夜
# rate = "20MiB"         # "0" 表示停止
# zone = "Asia/Shanghai" # 省略表示主机时区
"#
    );
    let _ = writeln!(out, "\n[[machine]]\nname = {}", quoted(&host));
    out += &say!(
        lang,
        r#"
# Commands around a snapshot (no shell). Without a snapshot hook a mounted disk is copied fuzzy. thaw may run twice, also
# without a freeze before it: it must be idempotent. snapshot may print DISK=PATH lines (all disks or none): read there.
# [machine.hooks]
# freeze = ["/usr/local/sbin/freeze"]
# freeze_timeout = "30s"
# snapshot = ["/usr/local/sbin/snapshot"]
# snapshot_timeout = "60s"
# thaw = ["/usr/local/sbin/thaw"]
# thaw_timeout = "30s"
# discard = ["/usr/local/sbin/discard"]
# discard_timeout = "2m"
"#,
        r#"
# 快照前后执行的命令（不经过 shell）。没有 snapshot 钩子时，已挂载的磁盘只能得到模糊副本。thaw 可能执行两次，
# 也可能未经 freeze 就执行，必须幂等。snapshot 可以输出 DISK=PATH 行（全部磁盘或一个也不输出），指明从哪里读取。
# [machine.hooks]
# freeze = ["/usr/local/sbin/freeze"]
# freeze_timeout = "30s"
# snapshot = ["/usr/local/sbin/snapshot"]
# snapshot_timeout = "60s"
# thaw = ["/usr/local/sbin/thaw"]
# thaw_timeout = "30s"
# discard = ["/usr/local/sbin/discard"]
# discard_timeout = "2m"
"#
    );
    for disk in &found.disks {
        block(&mut out, disk, lang);
    }
    out
}

fn block(out: &mut String, disk: &DiskReport, lang: Lang) {
    let size = units::size(disk.bytes);
    let identity = disk.identity.as_ref().map(|id| id.summary()).unwrap_or_default();
    let _ = writeln!(out, "\n# {size}  {}  {identity}", one_line(&disk.facts.model.clone().unwrap_or_default()));
    for reason in &disk.reasons {
        let _ = writeln!(out, "# ! {}", one_line(&reason.text(lang)));
    }
    // What cannot be copied stays visible, but out of the plan.
    let sign = if disk.verdict == Verdict::NoGo { "# " } else { "" };
    let name: String = disk
        .name
        .chars()
        .map(|c| if names::check_name("Disk name", &c.to_string()).is_ok() || c == '.' || c == '-' { c } else { '-' })
        .collect();
    let _ = writeln!(out, "{sign}[[machine.disk]]");
    let _ = writeln!(out, "{sign}name = {}", quoted(&name));
    let _ = writeln!(out, "{sign}source = {}", quoted(&disk.source.to_string_lossy()));
    let _ = writeln!(
        out,
        "# point_in_time = true   # {}",
        say!(lang, "you assert that it does not change while it is read", "由您声明：读取期间内容不变")
    );
    let _ = writeln!(
        out,
        "# exclude = \"\"           # {}",
        say!(lang, "give the reason, and it is planned but not copied", "填写原因则列入计划但不复制")
    );
}

/// A comment must stay one line whatever a disk calls itself.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn quoted(text: &str) -> String {
    toml::Value::String(one_line(text)).to_string()
}

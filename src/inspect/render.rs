//! An inspection for people: the host in a few lines, then a block a disk.

use std::fmt::Write;

use super::{DiskReport, Inspection, Verdict};
use crate::lang::Lang;
use crate::say;
use crate::source::Signature;
use crate::units;

pub(super) fn render(found: &Inspection, lang: Lang) -> String {
    let mut out = String::new();
    host(&mut out, found, lang);
    for disk in &found.disks {
        let _ = writeln!(out);
        block(&mut out, disk, lang);
    }
    if !found.passed_over.is_empty() {
        let group = |(why, names): (&String, &Vec<String>)| format!("{why}: {}", names.join(" "));
        let list = found.passed_over.iter().map(group).collect::<Vec<_>>().join("; ");
        let _ = writeln!(out, "\n{}", say!(lang, "Passed over: {list}", "未列出：{list}"));
    }
    let sum = &found.estimate;
    let (bytes, most, typical, state) = (
        units::size(sum.bytes),
        units::size(sum.array_bytes_at_most),
        units::size(sum.array_bytes_typical),
        units::size(sum.state_bytes),
    );
    let hours = hours(sum.hours);
    let _ = writeln!(
        out,
        "\n{}",
        say!(
            lang,
            "All that can be copied: {bytes}, {hours} of reading; array space {typical} typically, {most} at most; state directory {state}",
            "可复制合计：{bytes}，读取约 {hours}；移动存储空间通常 {typical}，最多 {most}；状态目录 {state}"
        )
    );
    out
}

fn host(out: &mut String, found: &Inspection, lang: Lang) {
    let host = &found.host;
    let unknown = || "?".to_owned();
    let name = host.hostname.clone().unwrap_or_else(unknown);
    let os = host.os.clone().unwrap_or_else(unknown);
    let kernel = host.kernel.clone().unwrap_or_else(unknown);
    let _ = writeln!(out, "{}", say!(lang, "Host {name}: {os}, kernel {kernel}", "主机 {name}：{os}，内核 {kernel}"));
    let machine: Vec<String> = [&host.vendor, &host.product, &host.serial].into_iter().flatten().cloned().collect();
    let machine = if machine.is_empty() { unknown() } else { machine.join(" · ") };
    let firmware = host.firmware.clone().unwrap_or_else(unknown);
    let (cpus, memory) = (host.cpus, units::size(host.memory_bytes));
    let model = host.cpu_model.clone().unwrap_or_else(unknown);
    let _ = writeln!(
        out,
        "{}",
        say!(
            lang,
            "  {machine}; firmware {firmware}; {cpus} × {model}; memory {memory}",
            "  {machine}；固件 {firmware}；{cpus} × {model}；内存 {memory}"
        )
    );
    for nic in host.nics.iter().filter(|nic| nic.physical || !nic.addresses.is_empty()) {
        let mac = nic.mac.clone().unwrap_or_else(unknown);
        let _ = writeln!(out, "  {} {mac} {}", nic.name, nic.addresses.join(" "));
    }
}

fn block(out: &mut String, disk: &DiskReport, lang: Lang) {
    let word = match disk.verdict {
        Verdict::Go => say!(lang, "GO", "可复制"),
        Verdict::Caution => say!(lang, "CAUTION", "注意"),
        Verdict::NoGo => say!(lang, "NO-GO", "不可复制"),
    };
    let facts = &disk.facts;
    let about: Vec<String> = [facts.model.clone(), facts.transport.clone()].into_iter().flatten().collect();
    let _ = writeln!(out, "{}  {}  {}  {word}", disk.name, units::size(disk.bytes), about.join(", "));
    let _ = writeln!(out, "  {}", disk.source.display());
    if let Some(identity) = &disk.identity {
        let summary = identity.summary();
        let _ = writeln!(out, "  {}", say!(lang, "identity: {summary}", "身份：{summary}"));
    }
    if !facts.contents.is_empty() {
        let _ = writeln!(out, "  {}", signatures(&facts.contents));
    }
    for part in facts.table.iter().flat_map(|table| &table.partitions) {
        let contents = facts.volumes.iter().find(|volume| volume.partition == part.number);
        let kind = part.type_name.clone().unwrap_or_else(|| part.type_id.clone());
        let held = contents.map_or_else(String::new, |volume| format!(": {}", signatures(&volume.contents)));
        let _ = writeln!(out, "  {:>3}  {}  {kind}{held}", part.number, units::size(part.bytes));
    }
    for reason in &disk.reasons {
        let sign = match reason.verdict() {
            Verdict::Go => "·",
            Verdict::Caution => "!",
            Verdict::NoGo => "✗",
        };
        let _ = writeln!(out, "  {sign} {}", reason.text(lang));
    }
    if disk.verdict != Verdict::NoGo {
        let (hours, typical, most) = (
            hours(disk.estimate.hours),
            units::size(disk.estimate.array_bytes_typical),
            units::size(disk.estimate.array_bytes_at_most),
        );
        let _ = writeln!(
            out,
            "  {}",
            say!(
                lang,
                "about {hours} of reading; array space {typical} typically, {most} at most",
                "读取约 {hours}；移动存储空间通常 {typical}，最多 {most}"
            )
        );
    }
}

fn signatures(found: &[Signature]) -> String {
    let one = |s: &Signature| match (&s.label, &s.uuid) {
        (Some(label), _) => format!("{} \"{label}\"", s.kind),
        (None, Some(uuid)) => format!("{} {uuid}", s.kind),
        (None, None) => s.kind.clone(),
    };
    found.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// Whole seconds are false precision for an estimate, except for small disks.
fn hours(hours: f64) -> String {
    units::duration((hours * 3600.0).ceil() as u64)
}

//! Facts → one self-contained HTML page: words from [`super::words`], drawings from [`super::svg`], everything else escaped by
//! the template engine. Pure: the same facts give the same bytes.

use super::facts::{Clock, Disk, Drilled, Facts, Imported, Kind, Readback, Remark, Role, Verdict};
use super::svg;
use super::words::words;
use crate::custody::centre::Deed;
use crate::error::{Error, Result};
use crate::lang::Lang;
use crate::say;
use crate::units::size;
use jiff::Timestamp;
use minijinja::value::{Serde, Value};
use minijinja::{AutoEscape, Environment, UndefinedBehavior};
use motiongear_manifest::code::spoken_code;
use motiongear_manifest::documents::custody::Event;
use motiongear_manifest::documents::seal::{Basis, Consistency};

const TEMPLATE: &str = include_str!("template.html");
/// The style that all papers share.
pub const STYLE: &str = include_str!("style.css");
/// Most unreadable ranges that are printed for a disk; the JSON and the manifest have them all.
const MAX_RANGES: usize = 40;
/// Most events that are printed.
const MAX_EVENTS: usize = 200;

/// A map for the template; values by `Serialize`, so that facts need not be cloned.
macro_rules! context {
    ($($key:ident => $value:expr),* $(,)?) => {
        Value::from_pairs([$((stringify!($key), Value::from(Serde(&$value)))),*])
    };
}

/// Renders the report.
///
/// # Errors
/// None for facts that `gather` made; the template is part of the program.
pub fn html(facts: &Facts, lang: Lang) -> Result<String> {
    paper(TEMPLATE, view(facts, lang))
}

/// Renders a template of the program; everything that it is not told to be safe is escaped.
///
/// # Errors
/// None for a view that has every key of the template.
pub fn paper(template: &str, view: Value) -> Result<String> {
    let failed = |e: minijinja::Error| Error::failed("Document as HTML").because(e);
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_auto_escape_callback(|_| AutoEscape::Html);
    environment.add_template("paper.html", template).map_err(failed)?;
    let template = environment.get_template("paper.html").map_err(failed)?;
    template.render(view).map_err(failed)
}

fn view(facts: &Facts, lang: Lang) -> Value {
    let time = |at: Timestamp| time(at, facts.utc_offset_minutes);
    let disks: Vec<Value> = facts.disks.iter().map(|disk| disk_view(disk, facts, lang)).collect();
    let bytes: u64 = facts.disks.iter().map(|disk| disk.bytes).sum();
    let (copied, planned) = (facts.disks.len(), facts.disks.len() + facts.excluded.len());
    let (machines, total) = (facts.machines.len(), size(bytes));
    let (packed, packs) = (size(facts.seal.pack_bytes), facts.seal.packs);
    let seal_time = time(facts.seal.sealed_at);
    let signer = &facts.seal.signer;
    context! {
        t => words(lang),
        style => safe(STYLE.to_owned()),
        report => facts.report.word(),
        number => facts.number,
        made_at => time(facts.made_at),
        tool => facts.tool,
        host => facts.host,
        verdict => match facts.verdict { Verdict::Good => "good", Verdict::Remarks => "remarks", Verdict::Bad => "bad" },
        headline => headline(facts, lang),
        remarks => facts.remarks.iter().map(|remark| context! {
            level => match remark.verdict() { Verdict::Good => "good", Verdict::Remarks => "remarks", Verdict::Bad => "bad" },
            text => remark_text(remark, lang),
        }).collect::<Vec<_>>(),
        code => &facts.seal.spoken_code,
        claim => claim(facts, lang),
        site => facts.site,
        purpose => facts.purpose,
        shipment => facts.shipment,
        media => facts.shipment.media,
        box_seals => facts.box_seals,
        disks_line => say!(
            lang,
            "{copied} of {planned} planned, of {machines} machine(s), {total}",
            "计划 {planned} 块，已复制 {copied} 块，共 {machines} 台主机，{total}"
        ),
        array_line => say!(lang, "{packed} in {packs} pack(s)", "{packed}，{packs} 个数据包"),
        sealed_line => say!(lang, "{seal_time} by {signer}", "{seal_time}，{signer}"),
        seal => facts.seal,
        signer_checked => if facts.seal.signer_checked {
            say!(lang, "compared with the list of allowed signers", "已与许可签名人名单核对")
        } else {
            say!(lang, "signer not checked: no list of allowed signers was given", "未核对签名人：未提供许可签名人名单")
        },
        suite => if facts.shipment.encrypted { facts.shipment.suite.clone() } else {
            say!(lang, "none: the array can be read by whoever holds it", "未加密：持有者可直接读取")
        },
        people => facts.people.iter().map(|person| context! {
            role => match person.role {
                Role::Bank => "bank", Role::Engineer => "engineer", Role::Courier => "courier", Role::Receiver => "receiver",
            },
            name => person.name,
        }).collect::<Vec<_>>(),
        servers => facts.machines.iter().filter_map(|machine| {
            let pairs = machine.server.as_ref()?.pairs();
            Some(context! { machine => machine.name, pairs => pairs })
        }).collect::<Vec<_>>(),
        disks => disks,
        excluded => facts.excluded,
        verifications => facts.verifications.iter().map(|check| context! {
            at => time(check.at),
            scope => if check.with_identity {
                say!(lang, "medium and decrypted contents, every block", "介质及解密后的内容，逐块校验")
            } else {
                say!(lang, "medium without keys: every pack and record", "无密钥介质校验：全部数据包与记录")
            },
            good => check.good,
            result => if check.good { say!(lang, "nothing wrong", "无异常") } else { say!(lang, "FAULTS FOUND", "发现异常") },
        }).collect::<Vec<_>>(),
        recipients => facts.recipients,
        custody => facts.custody.iter().map(|event| context! {
            number => event.number,
            event => event_word(event.event, lang),
            at => time(event.at),
            person => event.person,
            place => event.place,
            box_seals => event.box_seals.join(", "),
            signer => event.signer,
            key => event.key,
            note => event.note,
            checked => checked_word(event.signer_checked, lang),
        }).collect::<Vec<_>>(),
        centre => facts.centre.iter().map(|event| context! {
            number => event.number,
            event => deed_word(event.event, lang),
            at => time(event.at),
            known => match event.known_custody {
                Some(number) => say!(lang, "up to event {number}", "至第 {number} 号"),
                None => say!(lang, "none", "无"),
            },
            seal => spoken_code(&event.seal),
            signer => event.signer,
            key => event.key,
            note => event.note,
            checked => checked_word(event.signer_checked, lang),
        }).collect::<Vec<_>>(),
        drills => facts.drills.iter().map(|drilled| drill_view(drilled, facts, lang)).collect::<Vec<_>>(),
        custody_notes => facts.custody_notes,
        clock => clock(facts.clock, lang),
        processes => facts.processes.iter().map(|process| context! {
            number => process.number,
            host => process.host,
            tool => process.tool,
            started => time(process.started_at),
            ended => process.ended_at.map(time).unwrap_or_default(),
            ending => process.ending,
            interrupted => process.interrupted,
        }).collect::<Vec<_>>(),
        import_runs => facts.import_runs.iter().map(|run| context! {
            target => run.target,
            tool => run.tool,
            engine => run.engine,
            started => time(run.started_at),
            ended => run.ended_at.map(time).unwrap_or_default(),
            ending => run.ending,
            interrupted => run.interrupted,
        }).collect::<Vec<_>>(),
        events => facts.events.iter().take(MAX_EVENTS).map(|event| context! {
            at => time(event.at), kind => event.kind, object => event.object, detail => event.detail,
        }).collect::<Vec<_>>(),
        events_more => facts.events.len().saturating_sub(MAX_EVENTS),
        more => say!(lang, "and {} more, in the JSON of this report", "另有 {} 项，见本报告的 JSON", facts.events.len().saturating_sub(MAX_EVENTS)),
        host_writes => facts.host_writes,
        commands => facts.commands,
        notes => facts.notes,
        swatch => context! {
            stored => safe(svg::swatch("stored")), saved => safe(svg::swatch("saved")), zero => safe(svg::swatch("zero")),
            unreadable => safe(svg::swatch("unreadable")), damaged => safe(svg::swatch("damaged")),
        },
    }
}

fn drill_view(drilled: &Drilled, report: &Facts, lang: Lang) -> Value {
    let time = |at: Timestamp| time(at, report.utc_offset_minutes);
    let facts = &drilled.facts;
    let disks = facts.drill.disks.iter().map(|disk| format!("{}: {}", disk.name, disk.words(lang)));
    let remarks = facts.course.iter().filter_map(|course| course.adaptation.as_ref()).flat_map(|by| &by.remarks);
    let lines: Vec<String> = disks
        .chain(facts.drill.adapt_words(lang).filter(|_| !facts.is_not_adapted()))
        .chain(remarks.cloned())
        .chain(facts.drill.notes.iter().cloned())
        .chain(facts.course.iter().flat_map(|course| &course.last_lines).map(|line| format!("| {line}")))
        .chain(facts.withdrawn.iter().map(|withdrawn| withdrawn.words(lang)))
        .collect();
    context! {
        machine => facts.drill.machine,
        id => facts.drill.drill,
        at => time(facts.drill.made_at),
        disks => lines,
        how => match &facts.drill.compute {
            None => format!("{}, {}, {}", facts.drill.firmware.word(), facts.drill.bus.word(), facts.drill.accel.word()),
            Some(compute) => {
                let (firmware, bus, flavour) = (facts.drill.firmware.word(), facts.drill.bus.word(), &compute.flavour_name);
                say!(
                    lang,
                    "{firmware}, {bus}, Nova, flavour {flavour}; Nova gives no picture of the screen",
                    "{firmware}，{bus}，Nova，规格 {flavour}；Nova 不提供屏幕图片"
                )
            }
        },
        network => facts.drill.network.as_ref().map(|network| network.name.clone()).unwrap_or_default(),
        result => facts.result_words(lang),
        level => match facts.stands() { Some(true) => "good", Some(false) => "bad", None => "remarks" },
        verdict => facts.verdict_words(lang),
        note => facts.confirmation.as_ref().map(|said| said.note.clone()).unwrap_or_default(),
        confirmed => facts.confirmation.as_ref().map(|said| time(said.confirmed_at)).unwrap_or_default(),
        key => facts.key.clone().unwrap_or_default(),
        checked => if facts.key.is_some() && !facts.signer_refused { checked_word(facts.signer_checked, lang) } else { String::new() },
        status => facts.status_words(lang),
        picture => drilled.picture.clone().unwrap_or_default(),
    }
}

/// What is markup of the program's own.
pub fn safe(svg: String) -> Value {
    Value::from_safe_string(svg)
}

/// `2026-11-20 13:05:01 UTC (21:05:01 +08:00)`; with the day where the local one is another.
fn time(at: Timestamp, offset_minutes: i32) -> String {
    let utc = at.strftime("%Y-%m-%d %H:%M:%S UTC").to_string();
    let zone = offset_minutes.checked_mul(60).and_then(|seconds| jiff::tz::Offset::from_seconds(seconds).ok());
    let Some(zone) = zone.filter(|_| offset_minutes != 0) else { return utc };
    let local = zone.to_datetime(at);
    let day = if local.date() == jiff::tz::Offset::UTC.to_datetime(at).date() { "" } else { "%Y-%m-%d " };
    let (sign, minutes) = (if offset_minutes < 0 { '-' } else { '+' }, offset_minutes.abs());
    let local = local.strftime(&format!("{day}%H:%M:%S")).to_string();
    format!("{utc} ({local} {sign}{:02}:{:02})", minutes / 60, minutes % 60)
}

/// Thousands apart by a narrow space that does not break.
fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push('\u{202f}');
        }
        text.push(digit);
    }
    text
}

/// The one sentence that an auditor must find first.
fn headline(facts: &Facts, lang: Lang) -> String {
    match (facts.report, facts.verdict) {
        (Kind::Handover, Verdict::Good) => {
            say!(lang, "Complete, sealed and verified: ready to hand over", "复制完整，已封签并通过校验：可以移交")
        }
        (Kind::Handover, Verdict::Remarks) => say!(
            lang,
            "Sealed and verified: can be handed over, with the remarks below",
            "已封签并通过校验：可以移交，但请注意以下事项"
        ),
        (Kind::Handover, Verdict::Bad) => say!(lang, "Not ready to hand over", "尚不能移交"),
        (Kind::Import, Verdict::Good) if facts.all_proven() => proven_words(facts, lang),
        (Kind::Import, Verdict::Remarks) if facts.all_proven() => {
            let words = proven_words(facts, lang);
            say!(lang, "{words}, with the remarks below", "{words}，但请注意以下事项")
        }
        (Kind::Import, Verdict::Good | Verdict::Remarks) => {
            say!(
                lang,
                "Imported; not every block was re-read from its medium, so source = target is not claimed for every disk",
                "已导入；并非每个块都从介质重读，故不对全部磁盘声明“源端 = 目标”"
            )
        }
        (Kind::Import, Verdict::Bad) => {
            say!(lang, "Import incomplete: see the faults below", "导入不完整：请见以下问题")
        }
    }
}

/// What all proven disks have in common. A disk that was live while it was read has no state that a target could equal.
pub fn proven_words(facts: &Facts, lang: Lang) -> String {
    if facts.any_fuzzy() {
        say!(lang, "Target = what was read, proven for every disk", "目标 = 所读内容：每块磁盘均已证明")
    } else {
        say!(lang, "Source = target, proven for every disk", "源端 = 目标：每块磁盘均已证明")
    }
}

/// What signing this paper means.
fn claim(facts: &Facts, lang: Lang) -> String {
    let (seal, code) = (&facts.seal, &facts.seal.spoken_code);
    let key = &seal.key;
    match facts.report {
        Kind::Handover => say!(
            lang,
            "The undersigned hand over and take over one transport array under seal {code}. Everything on it is pinned by that seal, which key {key} signed. By signing, each states to have compared the code, the asset tag and the box seals with the array in front of them.",
            "签字各方就封签为 {code} 的移动存储办理移交。其中全部内容由该封签锁定，签名密钥为 {key}。签字即表示本人已将核对码、资产编号和箱封编号与实物逐一核对。"
        ),
        Kind::Import if facts.all_proven() => {
            let words = match facts.any_fuzzy() {
                true => say!(lang, "Target = what was read", "目标 = 所读内容"),
                false => say!(lang, "Source = target", "源端 = 目标"),
            };
            let holes = match facts.disks.iter().any(Disk::may_have_holes) {
                true => say!(
                    lang,
                    " Blocks that a file system or server calls holes count as zeros by its word.",
                    "文件系统或服务器称为空洞的块，按其说明计为全零。"
                ),
                false => String::new(),
            };
            say!(
                lang,
                "{words}. For every disk below, each block was taken from the source, read from the array and compared with the signed manifest under seal {code}, written, and read back from the volume after flushing; no block was trusted. The digest of each volume, over the disk's size, is the digest in the seal.{holes}",
                "{words}。下列每块磁盘的每个块均取自源端、从移动存储读取并与封签 {code} 下的签名清单比对、写入，并在落盘后从云卷回读；没有任何块是采信而未重读的。各云卷在磁盘容量范围内的摘要与封签所载摘要一致。{holes}"
            )
        }
        Kind::Import => say!(
            lang,
            "The content of the array under seal {code} was imported as stated below. \"Source = target\" is claimed only for the disks where the result says so: there every block was read on each side and none was trusted.",
            "封签 {code} 下的内容已按下述情况导入。仅对结果中注明的磁盘声明“源端 = 目标”：这些磁盘的每个块在各环节均已读取，没有采信的块。"
        ),
    }
}

fn remark_text(remark: &Remark, lang: Lang) -> String {
    let count = |n: &u64| count(*n);
    match remark {
        Remark::NotVerified => say!(
            lang,
            "The medium has not been checked against this seal: run motiongear verify before dispatch",
            "介质尚未按此封签校验：发运前请运行 motiongear verify"
        ),
        Remark::VerifyFailed => say!(lang, "The last check of the medium found faults", "最近一次介质校验发现异常"),
        Remark::Excluded { disks } => say!(
            lang,
            "{} planned disk(s) were not copied, for the reasons listed",
            "{} 块计划内磁盘未复制，原因见下",
            count(disks)
        ),
        Remark::Unreadable { blocks, bytes } => say!(
            lang,
            "{} ({} bytes) in {} block(s) could not be read at the source and count as zeros",
            "源端有 {}（{} 字节）无法读取，涉及 {} 个块，按零计入",
            size(*bytes),
            count(bytes),
            count(blocks)
        ),
        Remark::Fuzzy { disks } => say!(
            lang,
            "{} disk(s) are not of one point in time (fuzzy): they become consistent only by a later sync",
            "{} 块磁盘并非同一时间点的状态（模糊）：须经后续同步才能达到一致",
            count(disks)
        ),
        Remark::Asserted { disks } => say!(
            lang,
            "{} disk(s) are one point in time by the engineer's word; MotionGear did not see it",
            "{} 块磁盘的时间点一致性由工程师声明，MotionGear 未能自行确认",
            count(disks)
        ),
        Remark::Plaintext => say!(
            lang,
            "THE ARRAY IS NOT ENCRYPTED: WHOEVER HOLDS IT CAN READ EVERY DISK",
            "移动存储未加密：任何持有者都能读取全部磁盘"
        ),
        Remark::ShipmentNotSigned => say!(
            lang,
            "shipment.json is not signed: nobody vouches for who can decrypt",
            "shipment.json 未签名：无人为解密方名单作证"
        ),
        Remark::SealedInFuture => say!(
            lang,
            "The seal is dated after this report: one of the two clocks is wrong",
            "封签时间晚于本报告：两台主机之一的时钟有误"
        ),
        Remark::Interrupted { times } => {
            say!(lang, "Copying was interrupted {} time(s) and resumed", "复制曾中断 {} 次并已续传", count(times))
        }
        Remark::ImportInterrupted { times } => {
            say!(lang, "Importing was interrupted {} time(s)", "导入曾中断 {} 次", count(times))
        }
        Remark::NotImported { disks } => say!(
            lang,
            "{} disk(s) of the seal are not (fully) imported",
            "封签中有 {} 块磁盘尚未（完整）导入",
            count(disks)
        ),
        Remark::Damaged { blocks } => {
            say!(lang, "{} block(s) failed a check and were not written", "{} 个块未通过校验，未写入", count(blocks))
        }
        Remark::Trusted { blocks } => say!(
            lang,
            "{} block(s) of volumes were trusted, not re-read",
            "云卷中有 {} 个块为采信而未重读",
            count(blocks)
        ),
        Remark::ThroughCache { disks } => say!(
            lang,
            "Read-back of {} volume(s) may have been answered by a cache",
            "{} 个云卷的回读可能经过缓存",
            count(disks)
        ),
        Remark::DigestDiffers { disks } => say!(
            lang,
            "{} volume(s), re-read, have another digest than the seal says",
            "{} 个云卷的回读摘要与封签不符",
            count(disks)
        ),
        Remark::VolumeDiffers { disks } => say!(
            lang,
            "{} volume(s) are missing or changed since the import (verify --volumes)",
            "{} 个云卷在导入之后缺失或已变化（verify --volumes）",
            count(disks)
        ),
        Remark::PointMissing { disks } => say!(
            lang,
            "{} volume(s) have lost the recovery point that the import took (verify --volumes)",
            "{} 个云卷已失去导入时创建的恢复点（verify --volumes）",
            count(disks)
        ),
        Remark::DifferenceAccepted { disks } => say!(
            lang,
            "{} volume(s) changed since the import, and the difference was accepted; the reasons stand below",
            "{} 个云卷在导入之后已变化，差异已被接受，原因见下",
            count(disks)
        ),
        Remark::HeadWithheld { disks } => say!(
            lang,
            "{} volume(s) cannot boot yet: head and tail are withheld",
            "{} 个云卷尚不能启动：首尾块仍被扣留",
            count(disks)
        ),
        Remark::DrillFailed { machines } => say!(
            lang,
            "The last confirmed drill of {} machine(s) failed, or its evidence is not what was confirmed",
            "有 {} 台主机最近一次确认的演练未通过，或其证据与确认时不符",
            count(machines)
        ),
        Remark::SignerNotChecked => say!(
            lang,
            "The signer of the seal was not compared with a list of allowed signers",
            "未将封签签名人与许可名单核对"
        ),
        Remark::Uncompared => say!(
            lang,
            "The seal was compared with nothing at import: an older seal of this shipment would look the same",
            "导入时未核对封签：同一批次的旧封签无法被识别"
        ),
        Remark::Custody => {
            say!(lang, "Something about the custody chain must be looked at", "交接记录存在需要核查之处")
        }
        Remark::BoxSeals => {
            say!(lang, "Box seals at arrival are not those put on at dispatch", "到达时的箱封与发运时不一致")
        }
    }
}

fn event_word(event: Event, lang: Lang) -> String {
    match event {
        Event::Dispatched => say!(lang, "dispatched", "已发运"),
        Event::Received => say!(lang, "received", "已签收"),
    }
}

fn deed_word(deed: Deed, lang: Lang) -> String {
    match deed {
        Deed::Imported => say!(lang, "imported", "已导入"),
        Deed::Erased => say!(lang, "erased", "已擦除"),
    }
}

fn checked_word(signer_checked: bool, lang: Lang) -> String {
    if signer_checked {
        say!(lang, "signature valid, signer allowed", "签名有效，签名人在名单内")
    } else {
        say!(lang, "signature valid, signer not checked", "签名有效，未核对签名人")
    }
}

fn clock(clock: Clock, lang: Lang) -> String {
    match clock {
        Clock::NotKnown => say!(
            lang,
            "Offset not known: no hardware clock to compare with. All times are this host's.",
            "偏差未知：没有可比对的硬件时钟。所有时间均为本机时间。"
        ),
        Clock::Rtc { offset_seconds } => say!(
            lang,
            "{offset_seconds:+} s against the hardware clock (which itself may be wrong). All times are this host's.",
            "相对硬件时钟 {offset_seconds:+} 秒（硬件时钟本身也可能不准）。所有时间均为本机时间。"
        ),
    }
}

fn consistency_text(disk: &Disk, lang: Lang) -> (String, String) {
    let word = match disk.consistency {
        Consistency::Consistent => say!(lang, "consistent", "一致"),
        Consistency::Fuzzy => say!(lang, "fuzzy", "模糊"),
    };
    let why = match disk.basis {
        Basis::None => say!(lang, "the disk was live while it was read", "读取期间磁盘在线"),
        Basis::Hook => say!(lang, "a snapshot hook ran", "已执行快照钩子"),
        Basis::Source => say!(lang, "the source is a snapshot", "源本身为快照"),
        Basis::Asserted => say!(lang, "asserted by the engineer", "由工程师声明"),
    };
    (word, why)
}

/// The result of one disk in a few words, and how good it is.
fn disk_result(disk: &Disk, kind: Kind, lang: Lang) -> (&'static str, String) {
    if kind == Kind::Handover {
        return match (disk.blocks.unreadable, disk.at_medium.trusted) {
            (0, 0) => ("good", say!(lang, "complete, re-read on the array", "完整，已在存储上重读")),
            (0, _) => ("bad", say!(lang, "complete, not re-read on the array", "完整，尚未在存储上重读")),
            (_, _) => ("remarks", say!(lang, "unreadable ranges", "有不可读区段")),
        };
    }
    match &disk.imported {
        None => ("bad", say!(lang, "not imported", "未导入")),
        Some(import) if import.damaged > 0 => {
            ("bad", say!(lang, "{} block(s) damaged", "{} 个块损坏", count(import.damaged)))
        }
        Some(import) if import.digest.is_some_and(|digest| digest != disk.digest) => {
            ("bad", say!(lang, "digest differs", "摘要不符"))
        }
        Some(import) if import.finished_at.is_none() => ("bad", say!(lang, "not finished", "未完成")),
        Some(import) if !import.head_released => ("bad", say!(lang, "head withheld", "首尾块被扣留")),
        Some(import) if import.check.as_ref().is_some_and(|check| !check.good) => {
            let accepted = import.check.as_ref().is_some_and(|check| check.accepted_at.is_some());
            (if accepted { "remarks" } else { "bad" }, say!(lang, "changed since", "导入后已变化"))
        }
        Some(_) if disk.proven() && disk.consistency == Consistency::Fuzzy => {
            ("good", say!(lang, "target = what was read", "目标 = 所读内容"))
        }
        Some(_) if disk.proven() => ("good", say!(lang, "source = target", "源端 = 目标")),
        Some(import) if import.through_cache => {
            ("remarks", say!(lang, "imported, read back through a cache", "已导入，回读经过缓存"))
        }
        Some(_) => ("remarks", say!(lang, "imported, blocks trusted", "已导入，有采信的块")),
    }
}

fn disk_view(disk: &Disk, facts: &Facts, lang: Lang) -> Value {
    let time = |at: Timestamp| time(at, facts.utc_offset_minutes);
    let kind = facts.report;
    let (word, why) = consistency_text(disk, lang);
    let (level, result) = disk_result(disk, kind, lang);
    let ranges = disk.unreadable_ranges;
    let shown = disk.unreadable.len().min(MAX_RANGES);
    let hidden = ranges.saturating_sub(shown as u64);
    let blocks = disk.blocks;
    let per_cell = disk.map.blocks_per_cell.saturating_mul(u64::from(disk.block_bytes));
    let classes = disk.classes;
    let percent = |part: u64| {
        let total = classes.stored as f64 + classes.compressed_away as f64 + classes.zero as f64;
        if total > 0.0 { format!("{:.1} %", 100.0 * part as f64 / total) } else { "–".to_owned() }
    };
    let class = |bytes: u64| format!("{} · {}", size(bytes), percent(bytes));
    let proof = |proof: super::facts::Proof| context! { read => count(proof.read), trusted => count(proof.trusted), any => proof.trusted > 0 };
    context! {
        full => format!("{}/{}", disk.machine, disk.name),
        uuid => disk.uuid,
        generation => disk.generation,
        size => size(disk.bytes),
        bytes => count(disk.bytes),
        digest => disk.digest.to_string(),
        consistency => word,
        fuzzy => disk.consistency == Consistency::Fuzzy,
        why => why,
        point_in_time => disk.point_in_time,
        source => disk.source,
        read_time => match disk.finished_at {
            Some(end) => format!("{} – {}", time(disk.started_at), time(end)),
            None => time(disk.started_at),
        },
        identity => disk.identity,
        contents => disk.contents,
        blocks_line => say!(
            lang,
            "{} of {}: {} stored, {} zero, {} unreadable",
            "{} 块（每块 {}）：已存储 {}，全零 {}，不可读 {}",
            count(disk.block_count()), size(u64::from(disk.block_bytes)), count(blocks.stored), count(blocks.zero), count(blocks.unreadable)
        ),
        unreadable => if disk.unreadable_bytes == 0 { String::new() } else { size(disk.unreadable_bytes) },
        ranges => disk.unreadable.iter().take(MAX_RANGES).map(|range| context! {
            offset => count(range.offset), bytes => count(range.bytes),
        }).collect::<Vec<_>>(),
        ranges_more => if hidden == 0 { String::new() } else {
            say!(lang, "and {} more, in the manifest", "另有 {} 段，见清单", count(hidden))
        },
        level => level,
        result => result,
        map => safe(svg::map(&disk.map)),
        has_map => !disk.map.cells.is_empty(),
        has_unreadable => disk.map.cells.contains('u'),
        has_damaged => disk.map.cells.contains('d'),
        cell_line => say!(lang, "one cell: {}", "每格 {}", size(per_cell)),
        bar => safe(svg::classes(&classes)),
        stored => class(classes.stored),
        saved => class(classes.compressed_away),
        zero => class(classes.zero),
        at_source => proof(disk.at_source),
        at_medium => proof(disk.at_medium),
        medium_compared => if kind == Kind::Import {
            say!(lang, "leaves of the signed manifest", "签名清单中的叶值")
        } else {
            say!(lang, "checksums of records, digests of packs", "记录校验和与数据包摘要")
        },
        volume_compared => say!(lang, "leaves of the signed manifest", "签名清单中的叶值"),
        source_compared => say!(lang, "nothing: read once", "无：仅读取一次"),
        holes => disk.may_have_holes(),
        imported => disk.imported.as_ref().map(|import| import_view(import, disk, facts, lang)),
    }
}

fn import_view(import: &Imported, disk: &Disk, facts: &Facts, lang: Lang) -> Value {
    let time = |at: Timestamp| time(at, facts.utc_offset_minutes);
    let readback = match import.readback {
        Readback::Full => say!(lang, "full: every block", "全部：逐块回读"),
        Readback::Sample => say!(lang, "sample of blocks", "抽样"),
        Readback::None => say!(lang, "none", "未回读"),
    };
    let cache = if import.through_cache {
        say!(lang, ", through a cache", "，经过缓存")
    } else if import.readback == Readback::None {
        String::new()
    } else {
        say!(lang, ", from the medium after flushing", "，落盘后自介质读取")
    };
    let shown: Vec<String> = import.damaged_blocks.iter().take(MAX_RANGES).map(|block| count(*block)).collect();
    context! {
        target => import.target,
        times => match import.finished_at {
            Some(end) => format!("{} – {}", time(import.started_at), time(end)),
            None => say!(lang, "{} – not finished", "{} – 未完成", time(import.started_at)),
        },
        readback => format!("{readback}{cache}"),
        digest => match import.digest {
            Some(digest) if digest == disk.digest => say!(lang, "{digest} – equal to the seal", "{digest}（与封签一致）"),
            Some(digest) => say!(lang, "{digest} – NOT the seal's", "{digest}（与封签不符）"),
            None => say!(lang, "not computed: not every block was re-read", "未计算：并非每个块都经过重读"),
        },
        head => match (import.head_released, import.accepted_unreadable) {
            (true, false) => say!(lang, "written last, after everything else was proven", "在其余内容证明无误后最后写入"),
            (true, true) => say!(lang, "written although ranges were unreadable at the source (--accept-unreadable)", "虽有源端不可读区段，仍经 --accept-unreadable 放行写入"),
            (false, _) => say!(lang, "withheld: the volume cannot boot", "扣留：云卷不能启动"),
        },
        recovery_point => import.recovery_point,
        check => import.check.as_ref().map(|check| {
            let at = time(check.checked_at);
            let found = match (check.good, &check.why) {
                (true, _) => say!(lang, "as proven, every block read again", "与已证明内容一致，全部块已重读"),
                (false, Some(why)) => say!(lang, "NOT read: {why}", "未能读取：{why}"),
                (false, None) => {
                    let blocks = count(check.differing);
                    say!(lang, "NOT as proven: {blocks} block(s) differ", "与已证明内容不符：{blocks} 个块不同")
                }
            };
            let accepted = check.reason.as_ref().map(|reason| say!(lang, "; accepted: {reason}", "；已接受：{reason}"));
            let lost = check.missing_point.as_ref().map(|_| say!(lang, "; recovery point missing", "；恢复点已不存在"));
            format!("{at}: {found}{}{}", accepted.unwrap_or_default(), lost.unwrap_or_default())
        }),
        damaged => shown.join(", "),
        damaged_more => import.damaged.saturating_sub(shown.len() as u64),
        volume => context! { read => count(import.volume.read), trusted => count(import.volume.trusted), any => import.volume.trusted > 0 },
    }
}

#[cfg(test)]
mod tests;

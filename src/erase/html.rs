//! The certificate for paper: what its JSON says, in the style of the reports.

use super::certificate::Certificate;
use crate::error::Result;
use crate::lang::Lang;
use crate::report::html::{STYLE, paper, safe};
use crate::say;
use crate::units::size;
use minijinja::value::Value;

const TEMPLATE: &str = include_str!("certificate.html");

/// Renders the certificate.
///
/// # Errors
/// None in practice; the template is part of the program.
pub fn html(certificate: &Certificate, lang: Lang) -> Result<String> {
    let journal = &certificate.journal;
    let place = &journal.place;
    let word = |en: &str, zh: &str| match lang {
        Lang::En => en.to_owned(),
        Lang::Zh => zh.to_owned(),
    };
    let time = |at: jiff::Timestamp| at.strftime("%Y-%m-%d %H:%M:%S UTC").to_string();
    let none = || word("none", "无");
    let or_none = |text: String| if text.is_empty() { none() } else { text };
    let files: Vec<_> = [&journal.envelopes, &journal.packs, &journal.others].into_iter().flatten().collect();
    let bytes: u64 = files.iter().map(|file| file.bytes).sum();
    let sampled: u64 = files.iter().map(|file| file.sampled_bytes).sum();
    let (count, bytes, sampled) = (files.len(), size(bytes), size(sampled));
    let medium = |medium: &motiongear_manifest::documents::shipment::Medium| {
        format!("{}: {} {}", medium.number, medium.serial, medium.uuid)
    };
    let others = if place.other_names > place.others.len() as u64 { " …" } else { "" };
    let rows = [
        (word("Site", "站点"), format!("{} {}", journal.shipment.site.name, journal.shipment.site.uuid)),
        (word("Shipment", "批次"), format!("{} {}", journal.shipment.label, journal.shipment.shipment)),
        (word("Asset tag", "资产编号"), or_none(journal.shipment.asset_tag.clone())),
        (
            word("Media, as prepared", "移动存储（初始化时）"),
            or_none(journal.shipment.media.iter().map(medium).collect::<Vec<_>>().join("; ")),
        ),
        (word("Serial numbers found", "实际序列号"), or_none(place.serials.join(", "))),
        (word("Mounted at", "挂载点"), format!("{} ({}, {})", place.mount_point, place.device, place.file_system)),
        (
            word("Also on that file system, not touched", "该文件系统上的其他内容（未触及）"),
            or_none(place.others.join(", ") + others),
        ),
        (word("Seal digest", "封签摘要"), journal.seal.map_or_else(none, |seal| seal.to_string())),
        (
            word("Packs given up by the seed", "复制时放弃的数据包"),
            or_none(journal.given_up_packs.iter().map(u32::to_string).collect::<Vec<_>>().join(", ")),
        ),
        (
            word("Begun, finished", "开始与完成"),
            format!("{} – {}", time(journal.began_at), time(certificate.finished_at)),
        ),
        (word("Erased by", "擦除人"), format!("{} · {} · {}", journal.signer, certificate.host, certificate.tool)),
        (
            word("Files", "文件"),
            say!(
                lang,
                "{count} files, {bytes} overwritten, {sampled} read back and all zero",
                "{count} 个文件，覆写 {bytes}，抽查回读 {sampled} 均为零"
            ),
        ),
        (word("Reason", "原因"), or_none(journal.reason.clone().unwrap_or_default())),
    ];
    let disks: Vec<Value> = journal
        .disks
        .iter()
        .map(|disk| {
            let (level, state) = match (&disk.unproven, disk.unseen(), disk.accepted()) {
                (Some(why), ..) => ("bad", say!(lang, "NOT proven: {why}", "未证明：{why}")),
                (None, Some(why), _) => {
                    ("bad", say!(lang, "volume NOT as proven: {why}", "云卷与已证明内容不符：{why}"))
                }
                (None, None, Some((at, reason))) => (
                    "remarks",
                    say!(
                        lang,
                        "proven; changed since, accepted at {at}: {reason}",
                        "已证明；此后已变化，已于 {at} 被接受：{reason}"
                    ),
                ),
                (None, None, None) => ("good", say!(lang, "proven", "已证明")),
            };
            Value::from_pairs([
                ("name", Value::from(format!("{}/{}", disk.machine, disk.disk))),
                ("digest", Value::from(disk.digest.to_string())),
                ("level", Value::from(level)),
                ("state", Value::from(state)),
            ])
        })
        .collect();
    let headline = if certificate.proven {
        say!(lang, "Erased; every disk was proven elsewhere", "已擦除；每块磁盘均已在别处证明")
    } else {
        say!(lang, "Erased although not every disk was proven elsewhere", "已擦除，但并非每块磁盘都已在别处证明")
    };
    let view = [
        ("style", safe(STYLE.to_owned())),
        ("lang", Value::from(word("en", "zh-CN"))),
        ("title", Value::from(word("Certificate of erasure", "擦除证书"))),
        ("code", Value::from(certificate.spoken_code.clone().unwrap_or_default())),
        ("level", Value::from(if certificate.proven { "good" } else { "bad" })),
        ("headline", Value::from(headline)),
        ("rows", rows.into_iter().map(|(name, value)| Value::from(vec![name, value])).collect::<Vec<_>>().into()),
        ("disks_title", Value::from(word("Disks", "磁盘"))),
        ("disks", Value::from(disks)),
        ("method_title", Value::from(word("How", "方法"))),
        ("method", Value::from(certificate.method.clone())),
        ("caution", Value::from(certificate.caution.clone())),
        ("sign", Value::from(vec![word("Name", "姓名"), word("Date, time", "日期、时间"), word("Signature", "签名")])),
        ("roles", Value::from(vec![word("Erased by", "擦除人"), word("Witness", "见证人")])),
    ];
    paper(TEMPLATE, Value::from_pairs(view))
}

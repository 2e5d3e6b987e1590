//! Fixed words of the report, both languages side by side. A key missing here fails the rendering, not the reader.

use crate::lang::Lang;
use std::collections::BTreeMap;

/// Key, English, 中文.
const WORDS: &[(&str, &str, &str)] = &[
    ("lang", "en", "zh-CN"),
    ("handover", "Handover report", "移交报告"),
    ("import", "Import report", "导入报告"),
    ("number", "Report number", "报告编号"),
    ("made_at", "Made", "生成时间"),
    ("seal_code", "Seal code, to be read aloud", "核对码（电话核对）"),
    ("seal_code_short", "Seal code", "核对码"),
    ("site", "Site", "站点"),
    ("purpose", "Purpose", "用途"),
    ("shipment", "Shipment", "批次"),
    ("asset_tag", "Asset tag", "资产编号"),
    ("media", "Media", "移动存储"),
    ("serial", "Serial number", "序列号"),
    ("box_seals", "Box seals", "箱封编号"),
    ("disks", "Disks", "磁盘"),
    ("on_array", "On the array", "存储上的数据"),
    ("sealed", "Sealed", "封签"),
    ("seal_digest", "Seal digest", "封签摘要"),
    ("signing_key", "Signing key", "签名密钥"),
    ("encryption", "Encryption", "加密"),
    ("none", "none", "无"),
    ("not_stated", "not stated", "未填写"),
    ("signatures", "Signatures", "签字"),
    ("bank", "For the bank", "银行方"),
    ("engineer", "Field engineer", "现场工程师"),
    ("courier", "Courier", "承运人"),
    ("receiver", "Receiver at the data centre", "数据中心接收人"),
    ("name", "Name", "姓名"),
    ("date", "Date, time", "日期、时间"),
    ("signature", "Signature", "签名"),
    ("digest_statement_title", "What a digest proves", "摘要能证明什么"),
    (
        "digest_statement",
        "The digest of a live disk proves what was read from it. It cannot be recomputed at the source, because the source has been written to since. Whoever has the volume or the array can recompute it at any time, with stock b3sum.",
        "在线磁盘的摘要证明的是从它读到了什么。源端此后仍在写入，因此无法在源端重新计算。持有云卷或移动存储的任何人，都可以随时用通用的 b3sum 重新计算。",
    ),
    ("overview", "Disks at a glance", "磁盘一览"),
    ("disk", "Disk", "磁盘"),
    ("machine", "Machine", "主机"),
    ("size", "Size", "容量"),
    ("consistency", "Consistency", "一致性"),
    ("unreadable", "Unreadable", "不可读"),
    ("digest", "Digest (BLAKE3)", "摘要（BLAKE3）"),
    ("result", "Result", "结果"),
    ("excluded_title", "Planned, but not copied", "已计划但未复制"),
    ("excluded_none", "Every planned disk was copied.", "计划内的磁盘全部已复制。"),
    ("reason", "Reason", "原因"),
    ("details", "Each disk", "逐盘明细"),
    ("identity", "Identity", "身份标识"),
    ("contents", "Contents", "内容"),
    ("read_from", "Read from", "读取自"),
    ("read_time", "Read", "读取时间"),
    ("point_in_time", "Point in time", "时间点"),
    ("generation", "Generation", "代"),
    ("blocks", "Blocks", "块"),
    ("bad_ranges", "Ranges that could not be read (they count as zeros)", "无法读取的区段（按零计入）"),
    ("offset", "Offset, bytes", "偏移（字节）"),
    ("length", "Length, bytes", "长度（字节）"),
    ("map", "Map of the disk, from its first byte to its last", "磁盘分布图（从首字节到末字节）"),
    ("bytes_by_class", "Bytes by class", "字节构成"),
    ("stored", "stored", "已存储"),
    ("compressed_away", "compressed away", "压缩省去"),
    ("zero", "zero", "全零"),
    ("unreadable_cell", "unreadable", "不可读"),
    ("damaged_cell", "damaged", "损坏"),
    ("evidence", "Blocks re-read, blocks trusted", "重读的块与采信的块"),
    ("side", "Side", "环节"),
    ("side_source", "Source", "源端"),
    ("side_medium", "Array", "移动存储"),
    ("side_volume", "Volume", "云卷"),
    ("reread", "Read", "已读取"),
    ("compared_with", "Compared with", "比对依据"),
    ("trusted", "Trusted, not re-read", "采信而未重读"),
    (
        "holes_note",
        "Among the zero blocks may be holes of image files: zeros by the word of the file system that holds the file.",
        "全零块中可能包含映像文件的空洞：其为零由承载该文件的文件系统保证。",
    ),
    ("target", "Volume", "云卷"),
    ("import_times", "Imported", "导入时间"),
    ("readback", "Read-back", "回读"),
    ("volume_digest", "Digest of the volume, re-read", "云卷回读摘要"),
    ("volume_check", "Read once more since", "导入后再次读取"),
    ("head", "Head and tail", "首尾块"),
    ("recovery_point", "Recovery point", "恢复点"),
    ("damaged_blocks", "Damaged blocks, not written", "损坏而未写入的块"),
    ("verifications", "Checks of the medium", "介质校验"),
    ("verifications_none", "The medium was not checked against this seal by this host.", "本机尚未按此封签校验介质。"),
    ("when", "When", "时间"),
    ("scope", "Scope", "范围"),
    ("recipients", "Recipients: who can decrypt", "接收方：谁能解密"),
    (
        "recipients_none",
        "The shipment is not encrypted. Whoever holds the array can read every disk on it.",
        "本批次未加密。持有移动存储的任何人都能读取其中全部磁盘。",
    ),
    ("fingerprint", "Fingerprint", "指纹"),
    ("recipient", "age recipient", "age 接收方"),
    ("custody", "Custody", "交接记录"),
    ("custody_array", "On the array: dispatched and received", "移动存储上的记录：发运与签收"),
    ("servers", "What the machines are to be in the cloud", "主机在云上的规划"),
    (
        "servers_note",
        "As the plan of the import said; it stands on their volumes, too. No server was made by the import.",
        "依据导入计划，并已写入各云卷的元数据；导入本身不创建云主机。",
    ),
    ("drills", "Drills", "恢复演练"),
    (
        "drills_note",
        "A drill boots a clone of the recovery point, or what is sealed on the array, apart from every network but one that leads nowhere. Where it says so, that clone was adapted to the new hardware first, and is no longer what was sealed. Neither volume nor array is ever written to.",
        "演练启动的是恢复点的克隆，或移动存储上已封签的内容，除隔离网络外不连任何网络；注明“适配”者，其克隆先按新硬件修改，已非封签时的原样；云卷和移动存储从不被写入。",
    ),
    ("drills_none", "No drill of these disks was made here.", "尚未对这些磁盘做过演练。"),
    ("drill_from", "Booted from", "启动来源"),
    ("drill_how", "Booted by", "启动方式"),
    ("drill_network", "network", "网络"),
    ("drill_confirmed", "Confirmed", "确认"),
    ("drill_status", "Machine", "主机状态"),
    ("drill_screen", "Screen of the machine", "主机屏幕"),
    ("custody_none", "No custody event is recorded yet.", "尚无交接记录。"),
    (
        "custody_centre",
        "At the data centre, in a chain of its own: imported and erased",
        "数据中心的独立记录链：导入与擦除",
    ),
    ("known_custody", "Custody known then", "当时已知的交接记录"),
    ("event", "Event", "事件"),
    ("person", "Person", "经手人"),
    ("place", "Place", "地点"),
    ("signed_by", "Signed by", "签名人"),
    ("note", "Note", "备注"),
    ("import_runs", "Runs of import", "导入过程"),
    ("insecure_http", "passwords over http allowed", "允许以明文 http 传输密码"),
    ("how_made", "How the copies were made", "复制过程"),
    ("process", "Process", "进程"),
    ("host", "Host", "主机"),
    ("started", "Started", "开始"),
    ("ended", "Ended", "结束"),
    ("ending", "Ending", "结束方式"),
    ("finished", "finished", "正常结束"),
    ("no_ending", "interrupted: ended without saying so", "中断：无结束记录"),
    ("clock", "Clock of this host", "本机时钟"),
    ("host_writes", "Written on the host", "在主机上写入的内容"),
    (
        "host_writes_note",
        "The sources were opened read-only and never written to. On the host itself, these were written:",
        "源磁盘仅以只读方式打开，从未写入。在主机自身上写入了以下内容：",
    ),
    ("events", "What happened meanwhile", "过程事件"),
    ("object", "Object", "对象"),
    ("detail", "Detail", "说明"),
    ("repeat", "Repeat every check with stock tools", "用通用工具重做每项校验"),
    (
        "repeat_note",
        "None of these needs MotionGear. Run them in ARRAY/motiongear, where ARRAY is where the array is mounted. ALLOWED_SIGNERS and IDENTITY are files of your own, VOLUME is the attached volume: give their full paths.",
        "以下命令都不需要 MotionGear。请在 ARRAY/motiongear 下执行，ARRAY 为移动存储挂载点。ALLOWED_SIGNERS 与 IDENTITY 为您自己的文件，VOLUME 为已挂接的云卷，请填写完整路径。",
    ),
    ("expected", "Must print", "应输出"),
    ("r_seal-digest", "The seal is the one of this report", "封签即本报告所述封签"),
    ("r_seal-signature", "The seal was signed by who it says", "封签确由所述签名人签署"),
    ("r_pins", "shipment.json and the key envelopes are what the seal says", "shipment.json 与密钥信封均与封签一致"),
    ("r_packs", "Every pack is what the seal says", "每个数据包均与封签一致"),
    ("r_manifest", "The manifest is what the seal says", "清单与封签一致"),
    ("r_decrypt", "The manifest, decrypted, is what the seal says", "清单解密后与封签一致"),
    ("r_rows", "Blocks of each disk, counted in the manifest", "按清单统计各磁盘的块"),
    ("r_custody", "Custody event, signed by who it says", "交接记录确由所述签名人签署"),
    ("r_centre", "Event of the data centre, signed by who it says", "数据中心记录确由所述签名人签署"),
    ("r_volume", "The volume is the disk", "云卷即该磁盘"),
    ("r_drill", "What was said of a drill was signed by who it says", "演练结论确由所述签名人签署"),
    ("r_report", "This report was signed by who it says", "本报告确由所述签名人签署"),
    ("notes", "Notes", "说明"),
    ("tool", "Made by", "制作工具"),
    ("page", "Page", "页"),
    ("machines", "Machines", "主机"),
    ("supersedes", "Supersedes seal", "取代封签"),
    ("manifest", "Manifest", "清单"),
    ("seal_section", "Seal", "封签"),
];

/// All words of one language by key.
pub fn words(lang: Lang) -> BTreeMap<&'static str, &'static str> {
    WORDS
        .iter()
        .map(|(key, en, zh)| {
            let word = match lang {
                Lang::En => *en,
                Lang::Zh => *zh,
            };
            (*key, word)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_stands_once_and_in_both_languages() {
        assert_eq!(words(Lang::En).len(), WORDS.len());
        for (key, en, zh) in WORDS {
            assert!(!en.is_empty() && !zh.is_empty(), "{key}");
            assert!(*key == "lang" || zh.chars().any(|c| c > '\u{2e80}'), "{key} is not in Chinese: {zh}");
        }
    }
}

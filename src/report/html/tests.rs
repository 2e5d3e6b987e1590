//! Goal: the page says what the facts say, in both languages alike, and nothing in it was written by a hostile name.

use super::super::facts::*;
use super::super::sample::{bad, good};
use super::html;
use crate::lang::Lang;

fn both(facts: &Facts) -> [String; 2] {
    let pages = [Lang::En, Lang::Zh].map(|lang| html(facts, lang).unwrap());
    // For people who want to look: MOTIONGEAR_SAMPLES=/tmp/samples cargo test report::html
    if let Some(dir) = std::env::var_os("MOTIONGEAR_SAMPLES") {
        for (page, lang) in pages.iter().zip(["en", "zh"]) {
            let name = format!("{}-{:?}-{lang}.html", facts.report.word(), facts.verdict).to_lowercase();
            std::fs::write(std::path::Path::new(&dir).join(name), page).unwrap();
        }
    }
    pages
}

/// The tags of a page in order: its structure without its words.
fn structure(page: &str) -> Vec<&str> {
    page.split('<').skip(1).filter_map(|tag| tag.split(['>', ' ']).next()).collect()
}

#[test]
fn both_languages_have_the_same_structure() {
    for facts in [good(Kind::Handover), good(Kind::Import), bad(Kind::Handover), bad(Kind::Import)] {
        let [en, zh] = both(&facts);
        assert_eq!(structure(&en), structure(&zh));
        assert!(en.contains("lang=\"en\"") && zh.contains("lang=\"zh-CN\""));
    }
}

#[test]
fn the_page_states_the_facts() {
    let facts = good(Kind::Handover);
    let [en, zh] = both(&facts);
    for page in [&en, &zh] {
        for text in [
            "H-8JX2K4QM71ZV-20261120T130501Z",
            "MG-ARRAY-014",
            "WD-WX12A3456789",
            "A 004411",
            "7KQ2-M9XD-41TV-C0ZR",
            "南溪支行",
            "db01/pgdata",
            "1\u{202f}932\u{202f}735\u{202f}283\u{202f}200",
            "SHA256:0v5D3v8pZ0m0m3eXoFq5W7yZb9m5x8j0Q1n2k3l4m5o",
            "b3sum seal.json",
        ] {
            assert!(page.replace("&#x2f;", "/").contains(text), "{text}");
        }
        for disk in &facts.disks {
            assert!(page.contains(&disk.digest.to_string()) && page.contains(&disk.uuid.to_string()));
        }
        assert!(page.contains(&facts.seal.digest.to_string()));
    }
    assert!(en.contains("ready to hand over") && zh.contains("可以移交"));
    assert!(en.contains("cannot be recomputed at the source") && zh.contains("无法在源端重新计算"));
}

#[test]
fn source_equals_target_is_claimed_only_when_no_block_was_trusted() {
    let proven = good(Kind::Import);
    assert_eq!((proven.verdict, proven.all_proven()), (Verdict::Good, true));
    let [en, zh] = both(&proven);
    assert!(en.contains("It asked for a login after 21.4 s") && en.contains("PASSED, says 赵敏"));
    assert!(zh.contains("21.4 秒后出现登录提示") && zh.contains("通过，确认人 赵敏"));
    assert!(en.contains("src=\"data:image/png;base64,UE5H\""));
    assert!(html(&proven, Lang::En).unwrap().contains("Source = target, proven for every disk"));
    type Spoil = fn(&mut Imported);
    let spoils: [Spoil; 7] = [
        |i| i.volume.trusted = 1,
        |i| i.medium.trusted = 1,
        |i| i.readback = Readback::Sample,
        |i| i.digest = None,
        |i| i.head_released = false,
        |i| i.volume.read -= 1,
        |i| i.through_cache = true,
    ];
    for spoil in spoils {
        let mut facts = good(Kind::Import);
        spoil(facts.disks[0].imported.as_mut().unwrap());
        facts.judge();
        assert!(!facts.all_proven());
        let page = html(&facts, Lang::En).unwrap();
        assert!(!page.contains("Source = target, proven for every disk") && !page.contains("no block was trusted"));
    }
    let mut facts = good(Kind::Import);
    facts.disks[0].at_source.trusted = 1;
    assert!(!facts.all_proven());
}

#[test]
fn every_misfortune_is_said() {
    let [en, _] = both(&bad(Kind::Import));
    for text in [
        "Import incomplete",
        "1 block(s) failed a check",
        "69\u{202f}632 bytes",
        "812\u{202f}646\u{202f}400",
        "Copying was interrupted 1 time",
        "Importing was interrupted 1 time",
        "NOT ENCRYPTED",
        "agreed with Ms Zhao",
        "through a cache",
        "withheld",
        "not compared",
        "no part of the chain",
        "medium error at byte 4096",
        "fuzzy",
        "an older seal",
        "1\u{202f}265\u{202f}432",
        "The last confirmed drill of 1 machine(s) failed",
        "FAILED, says 赵敏",
    ] {
        assert!(en.contains(text), "{text}");
    }
    let [en, _] = both(&bad(Kind::Handover));
    assert!(en.contains("Not ready to hand over") && en.contains("FAULTS FOUND"));
}

#[test]
fn hostile_text_is_escaped_wherever_it_stands() {
    const EVIL: &str = "<script>alert(1)</script>\"'&{{7*7}}";
    let mut facts = bad(Kind::Import);
    facts.site.name = EVIL.into();
    facts.purpose = EVIL.into();
    facts.host = EVIL.into();
    facts.shipment.label = EVIL.into();
    facts.shipment.asset_tag = EVIL.into();
    facts.shipment.media[0].serial = EVIL.into();
    facts.seal.signer = EVIL.into();
    facts.seal.manifest_file = EVIL.into();
    facts.box_seals = vec![EVIL.into()];
    facts.people[0].name = EVIL.into();
    facts.excluded[0].reason = EVIL.into();
    facts.excluded[0].machine = EVIL.into();
    facts.custody[0].person = EVIL.into();
    facts.custody[0].place = EVIL.into();
    facts.custody[0].note = EVIL.into();
    facts.custody[0].signer = EVIL.into();
    facts.custody[0].box_seals = vec![EVIL.into()];
    facts.centre[0].signer = EVIL.into();
    facts.centre[0].note = EVIL.into();
    facts.centre[0].file = EVIL.into();
    facts.processes[0].ending = Some(EVIL.into());
    facts.import_runs[0].target = EVIL.into();
    facts.import_runs[0].ending = Some(EVIL.into());
    facts.processes[0].host = EVIL.into();
    facts.events[0].detail = EVIL.into();
    facts.events[0].kind = EVIL.into();
    facts.host_writes[0].detail = EVIL.into();
    facts.notes = vec![EVIL.into()];
    facts.custody_notes = vec![EVIL.into()];
    facts.commands[0].command = EVIL.into();
    let drilled = &mut facts.drills[0];
    drilled.picture = Some(EVIL.into());
    drilled.facts.drill.machine = EVIL.into();
    drilled.facts.drill.disks[0].base = crate::drill::record::Base::Volume { volume: EVIL.into(), point: EVIL.into() };
    drilled.facts.drill.adapt = Some(crate::drill::record::Adapt { by: EVIL.into(), within_seconds: 1 });
    drilled.facts.course.as_mut().unwrap().adaptation = Some(crate::drill::record::Adaptation {
        by: EVIL.into(),
        state: crate::drill::record::AdaptState::Done,
        began_at: drilled.facts.drill.made_at,
        seconds: None,
        remarks: vec![EVIL.into()],
    });
    let said = drilled.facts.confirmation.as_mut().unwrap();
    said.person = EVIL.into();
    said.note = EVIL.into();
    said.signer = EVIL.into();
    for disk in &mut facts.disks {
        disk.name = EVIL.into();
        disk.machine = EVIL.into();
        disk.source = EVIL.into();
        disk.identity = EVIL.into();
        disk.contents = vec![EVIL.into()];
        disk.point_in_time = Some(EVIL.into());
        disk.map.cells = format!("{EVIL}sss");
        if let Some(import) = &mut disk.imported {
            import.target = EVIL.into();
        }
    }
    for page in both(&facts) {
        assert!(!page.contains("<script"), "an escape is missing");
        assert!(!page.contains("alert(1)</"));
        assert!(page.contains("{{7*7}}") && !page.contains("49</dd>"));
        assert!(page.matches("&lt;script&gt;").count() > 30);
    }
}

#[test]
fn the_json_holds_the_same_facts() {
    let facts = bad(Kind::Import);
    let json = serde_json::to_vec_pretty(&facts).unwrap();
    let back: Facts = serde_json::from_slice(&json).unwrap();
    assert_eq!(facts, back);
}

/// A picture that nobody sees proves nothing, and boxes on a sheet without code and digest can be signed for another array.
#[test]
fn a_browser_prints_the_picture_and_keeps_the_boxes_with_what_is_signed() {
    const PIXEL: &str =
        "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==";
    let dir = tempfile::tempdir().unwrap();
    let mut facts = bad(Kind::Import);
    facts.drills[0].picture = Some(PIXEL.into());
    // Whatever the remarks, and however long a name.
    facts.remarks = std::iter::repeat_n(facts.remarks.clone(), 4).flatten().collect();
    facts.disks[0].name = "x".repeat(300);
    let (page, pdf) = (dir.path().join("page.html"), dir.path().join("page.pdf"));
    std::fs::write(&page, html(&facts, Lang::En).unwrap()).unwrap();
    let mut browser = std::process::Command::new("chromium");
    browser.args(["--headless", "--no-sandbox", "--disable-gpu"]).env("HOME", dir.path());
    browser.arg(format!("--user-data-dir={}", dir.path().join("profile").display()));
    browser.arg(format!("--print-to-pdf={}", pdf.display())).arg(format!("file://{}", page.display()));
    let out = browser.output().unwrap();
    assert!(pdf.exists(), "{}", String::from_utf8_lossy(&out.stderr));
    let stock = |program: &str, arguments: &[&str]| {
        let out = std::process::Command::new(program).args(arguments).output().unwrap();
        String::from_utf8(out.stdout).unwrap()
    };
    let pdf = pdf.to_str().unwrap();
    assert!(stock("pdfimages", &["-list", pdf]).lines().count() > 2, "the picture is not in print");
    let text = stock("pdftotext", &["-layout", pdf, "-"]);
    let sheet = text.split('\u{c}').find(|sheet| sheet.contains("For the bank")).unwrap();
    let digest = facts.seal.digest.to_string();
    let code = facts.seal.spoken_code.split_at(4).0;
    for what in ["Receiver at the data centre", &facts.number, &digest, code, &facts.shipment.asset_tag] {
        assert!(sheet.contains(what), "{what} is not on the sheet with the boxes: {sheet}");
    }
}

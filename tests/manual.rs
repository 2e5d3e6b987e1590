//! MANUAL.md and README.md say what the program does, no more and no less: verbs, options, words, and the files they show as
//! examples. The days of the manual are run by `tests/manual-day`, which a test here keeps in step with the manual.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::Command;

const MANUAL: &str = include_str!("../MANUAL.md");
const README: &str = include_str!("../README.md");
const DAY: &str = include_str!("manual-day");

fn help(verb: &[&str]) -> String {
    let out = Command::new(env!("CARGO_BIN_EXE_motiongear")).args(verb).arg("--help").env("COLUMNS", "110").output();
    let out = out.unwrap();
    assert!(out.status.success(), "{verb:?} --help: {out:?}");
    String::from_utf8(out.stdout).unwrap()
}

/// Words of the list "Commands:" of a help text.
fn commands(help: &str) -> Vec<String> {
    let list = help.split("Commands:\n").nth(1).unwrap_or_default().split("\n\n").next().unwrap_or_default();
    let names = list
        .lines()
        .filter(|l| l.starts_with("  ") && !l.starts_with("   "))
        .filter_map(|l| l.split_whitespace().next());
    names.filter(|name| *name != "help").map(str::to_owned).collect()
}

/// Long options at the beginning of a line of a help text.
fn options(help: &str) -> BTreeSet<String> {
    let long = |line: &str| {
        let line = line.trim_start();
        let line = line.strip_prefix("-h, ").or(line.strip_prefix("-V, ")).unwrap_or(line);
        let name: String =
            line.strip_prefix("--")?.chars().take_while(|c| c.is_ascii_lowercase() || *c == '-').collect();
        Some(format!("--{name}"))
    };
    help.lines().filter(|line| line.starts_with("  ")).filter_map(long).collect()
}

/// A verb, or a verb and what follows it, with its options.
fn verbs() -> BTreeMap<String, BTreeSet<String>> {
    let mut found = BTreeMap::new();
    for verb in commands(&help(&[])) {
        let text = help(&[&verb]);
        let mut all = options(&text);
        for sub in commands(&text) {
            let own = options(&help(&[&verb, &sub]));
            all.extend(own.iter().cloned());
            found.insert(format!("{verb} {sub}"), own);
        }
        found.insert(verb, all);
    }
    found
}

/// The text below a heading `## NAME`, up to the next one.
fn section(name: &str) -> Option<&'static str> {
    let start = MANUAL.find(&format!("\n## {name}\n"))?;
    let text = &MANUAL[start + 1..];
    Some(text[3..].find("\n## ").map_or(text, |end| &text[..end + 3]))
}

/// Code between ```` ```KIND ```` and ```` ``` ````.
fn fenced(kind: &str) -> Vec<&'static str> {
    let open = format!("\n```{kind}\n");
    MANUAL
        .match_indices(&open)
        .map(|(at, _)| &MANUAL[at + open.len()..])
        .map(|t| &t[..t.find("\n```").unwrap() + 1])
        .collect()
}

#[test]
fn every_verb_and_option_is_in_the_manual() {
    let everywhere = options(&help(&[]));
    let common = section("Options of every verb").unwrap();
    for option in &everywhere {
        assert!(common.contains(&format!("`{option}`")), "'Options of every verb' lacks {option}");
    }
    for (verb, options) in verbs() {
        let heading = verb.split(' ').next().unwrap();
        let text = section(heading).unwrap_or_else(|| panic!("MANUAL.md has no heading '## {heading}'"));
        assert!(text.contains(&format!("motiongear {verb}")), "'## {heading}' shows no 'motiongear {verb}'");
        for option in options.difference(&everywhere) {
            assert!(text.contains(&format!("`{option}`")), "'## {heading}' lacks {option} of {verb}");
        }
    }
}

/// Every test, as `module::name` without what is above the module.
fn tests_of_the_sources() -> BTreeSet<String> {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let (mut folders, mut found) =
        (vec![root.join("tests"), root.join("manifest/tests"), root.join("src")], BTreeSet::new());
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()) {
            if entry.is_dir() {
                folders.push(entry);
            } else if entry.extension().is_some_and(|extension| extension == "rs") {
                let module = match entry.file_stem().unwrap().to_str().unwrap() {
                    "mod" => entry.parent().unwrap().file_name().unwrap().to_str().unwrap().to_owned(),
                    stem => stem.to_owned(),
                };
                let text = std::fs::read_to_string(&entry).unwrap();
                let names =
                    text.split("#[test]").skip(1).filter_map(|rest| rest.split("fn ").nth(1)?.split('(').next());
                found.extend(names.map(|name| format!("{module}::{name}")));
            }
        }
    }
    // Those that a macro makes, of this program.
    let list = Command::new(std::env::current_exe().unwrap()).arg("--list").output().unwrap();
    for name in String::from_utf8(list.stdout).unwrap().lines().filter_map(|line| line.strip_suffix(": test")) {
        let mut parts = name.rsplit("::");
        let (name, module) = (parts.next().unwrap(), parts.next().unwrap_or_default());
        found.insert(format!("{module}::{name}"));
    }
    found
}

/// Counts the promises of a text, each of which names tests of `tests`.
fn promises(text: &str, tests: &BTreeSet<String>) -> usize {
    let mut promises = 0;
    for row in text.lines() {
        let Some(row) = row.strip_prefix("| ").filter(|row| !row.starts_with("promise") && !row.starts_with("---"))
        else {
            continue;
        };
        let (promise, named) = row.trim_end_matches(" |").rsplit_once(" | ").unwrap();
        let named: Vec<&str> = named.split('`').filter(|name| name.contains("::")).collect();
        assert!(!named.is_empty(), "'{promise}' names no test");
        for name in named {
            assert!(tests.contains(name), "'{promise}' names {name}, which is no test");
        }
        promises += 1;
    }
    promises
}

#[test]
fn every_promise_names_tests_that_exist() {
    let found = promises(section("What MotionGear promises, and how it is tested").unwrap(), &tests_of_the_sources());
    assert!(found > 30, "{found}");
}

/// For each who might do harm: promises with their tests, and what is not promised.
#[test]
fn the_threat_model_names_tests_that_exist_and_what_is_not_promised() {
    let tests = tests_of_the_sources();
    let mut who = section("Threat model").unwrap().split("\n### ");
    who.next();
    let mut names = Vec::new();
    for text in who {
        let name = text.lines().next().unwrap();
        let found = promises(text, &tests);
        assert!(found >= 3, "{name}: {found} promises");
        assert_eq!(text.matches("\nNot promised: ").count(), 1, "{name}");
        names.push(name);
    }
    let expected = [
        "Courier",
        "Insider at the branch",
        "Insider at the centre",
        "Hostile array",
        "Hostile source",
        "Hostile cloud",
        "Hostile network",
        "Stolen key",
    ];
    assert_eq!(names, expected);
}

#[test]
fn every_verb_and_option_of_the_manual_exists() {
    let (verbs, everywhere) = (verbs(), options(&help(&[])));
    // Rows of the tables of options.
    for verb in verbs.keys().filter(|verb| !verb.contains(' ')) {
        for row in section(verb).unwrap().lines().filter_map(|l| l.strip_prefix("| `--")) {
            let name = format!("--{}", row.split('`').next().unwrap());
            assert!(verbs[verb].contains(&name), "'## {verb}' describes {name}, which does not exist");
        }
    }
    // Commands anywhere; an option in brackets or behind a `|` counts as well.
    for (file, text) in [("MANUAL.md", MANUAL), ("README.md", README)] {
        for command in text.split("motiongear ").skip(1).map(|rest| rest.lines().next().unwrap_or_default()) {
            let command = command.split('`').next().unwrap_or_default();
            let mut words = command.split(|c: char| !(c.is_ascii_lowercase() || c == '-')).filter(|w| !w.is_empty());
            let Some(verb) = words.next().filter(|word| verbs.contains_key(*word)) else { continue };
            for option in command.split(|c: char| !(c.is_ascii_lowercase() || c == '-')).filter(|w| w.starts_with("--"))
            {
                assert!(
                    option == "--" || verbs[verb].contains(option) || everywhere.contains(option),
                    "{file}: 'motiongear {command}': {verb} has no {option}"
                );
            }
        }
    }
    // Every verb of a synopsis (four spaces, first word of the line).
    for line in MANUAL.lines().filter_map(|line| line.strip_prefix("    motiongear ")) {
        let verb = line.split_whitespace().next().unwrap();
        assert!(verbs.contains_key(verb), "MANUAL.md: 'motiongear {line}': there is no verb {verb}");
    }
}

#[test]
fn the_two_commands_of_the_readme_exist() {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let text = README.split("## Two commands").nth(1).unwrap().split("\n## ").next().unwrap();
    let found: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("    ")).collect();
    assert_eq!(found, ["cargo run --release -- rehearse", "tests/run"]);
    assert!(commands(&help(&[])).contains(&"rehearse".to_owned()));
    use std::os::unix::fs::PermissionsExt;
    for script in ["tests/run", "tests/manual-day", ".ci/run"] {
        let meta = std::fs::metadata(root.join(script)).unwrap();
        assert!(meta.permissions().mode() & 0o111 != 0, "{script} cannot be executed");
    }
    // And what the map of the tree names is there.
    for name in README.split('`').skip(1).step_by(2).filter(|name| name.contains('/')) {
        let base = if name.starts_with("src/") && name.contains(' ') { "src/" } else { "" };
        for part in name.split(' ').map(|part| part.trim_start_matches(base)).filter(|part| !part.starts_with('-')) {
            let path = root.join(base).join(part);
            assert!(path.exists() || name.starts_with("cargo"), "README.md names {part}, which is not there");
        }
    }
}

#[test]
fn every_link_of_the_manual_leads_somewhere() {
    let anchor = |heading: &str| -> String {
        let lower = heading.trim().to_lowercase();
        lower
            .chars()
            .filter(|c| c.is_alphanumeric() || *c == ' ' || *c == '-')
            .map(|c| if c == ' ' { '-' } else { c })
            .collect()
    };
    let headings: BTreeSet<String> =
        MANUAL.lines().filter(|l| l.starts_with('#')).map(|l| anchor(l.trim_start_matches('#'))).collect();
    let (mut links, texts) = (0, [MANUAL, README]);
    for target in texts.iter().flat_map(|text| text.split("](").skip(1)).filter_map(|rest| rest.split(')').next()) {
        let Some(wanted) = target.strip_prefix("MANUAL.md#").or(target.strip_prefix('#')) else { continue };
        assert!(headings.contains(wanted), "a link leads to #{wanted}, which is no heading of MANUAL.md");
        links += 1;
    }
    assert!(links > 30, "{links}");
}

#[test]
fn the_allowed_signers_of_the_manual_are_understood() {
    let example = fenced("allowed-signers");
    assert_eq!(example.len(), 1);
    let signers = motiongear_manifest::allowed::AllowedSigners::parse(example[0]).unwrap();
    assert_eq!(signers.notes(), Vec::<String>::new());
    assert_eq!(example[0].lines().filter(|line| !line.starts_with('#')).count(), 2);
}

#[test]
fn the_plan_of_the_manual_is_understood() {
    let (imports, seeds): (Vec<&str>, Vec<&str>) =
        fenced("toml").into_iter().partition(|text| text.contains("flavour = "));
    let by_platform = |text: &&str| ["qmp:", "libvirt:", "vddk:"].iter().any(|scheme| text.contains(scheme));
    let (machines, plans): (Vec<&str>, Vec<&str>) = seeds.into_iter().partition(by_platform);
    assert_eq!((imports.len(), machines.len(), plans.len()), (1, 3, 1));
    let mapping = motiongear::import::Mapping::parse(imports[0]).unwrap();
    assert_eq!((mapping.servers.len(), mapping.target.wish("db01", "archive").is_some()), (2, true));
    let (vmware, running): (Vec<&str>, Vec<&str>) = machines.into_iter().partition(|text| text.contains("vddk:"));
    assert_eq!((vmware.len(), running.len()), (1, 2));
    for machine in running {
        assert!(motiongear::plan::Plan::parse(machine).unwrap().machines[0].monitor().is_some());
    }
    let vmware = motiongear::plan::Plan::parse(vmware[0]).unwrap();
    assert_eq!(vmware.machines[0].facts.as_ref().unwrap().memory_bytes, 16 << 30);
    let plan = motiongear::plan::Plan::parse(plans[0]).unwrap();
    assert_eq!(plan.disks().count(), 3);
    assert!(plan.machines[0].hooks.freeze.is_some());
    // Complete: every key of a plan that inspect writes, commented out or not, is shown.
    let written = include_str!("../src/inspect/plan_out.rs");
    for key in
        ["read", "cpu", "jobs", "latency_guard", "days", "from", "to", "rate", "zone", "exclude", "point_in_time"]
    {
        assert!(written.contains(&format!("{key} = ")), "inspect --plan-out lacks {key}");
        assert!(plans[0].contains(&format!("\n{key} = ")), "the manual's plan lacks {key}");
    }
}

#[test]
fn sizes_of_the_manual_are_what_they_say() {
    let rows = section("Sizes and rates").unwrap().lines().filter(|line| line.starts_with("| `"));
    let mut seen = 0;
    for row in rows {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let (typed, bytes) = (cells[1].trim_matches('`'), cells[2].split(' ').next().unwrap().parse::<u64>().unwrap());
        let rate = typed.contains("/s") || typed.contains("bit");
        let found = if rate { motiongear::units::parse_rate(typed) } else { motiongear::units::parse_size(typed) };
        assert_eq!(found.unwrap(), bytes, "{typed}");
        seen += 1;
    }
    assert_eq!(seen, 7);
}

/// Every string of the source that people read has Chinese beside the English; here: the words are the manual's.
#[test]
fn the_program_uses_the_words_of_the_manual() {
    let mut source = String::new();
    let mut folders = vec![PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().flatten() {
            if entry.path().is_dir() {
                folders.push(entry.path());
            } else {
                source += &std::fs::read_to_string(entry.path()).unwrap();
            }
        }
    }
    let rows = section("Words").unwrap().lines().filter(|line| line.starts_with("| ")).skip(2);
    let mut seen = 0;
    for row in rows {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        for word in cells[2].split('、') {
            assert!(source.contains(word), "MANUAL.md calls '{}' {word}, the program does not", cells[1]);
            seen += 1;
        }
    }
    assert!(seen >= 20, "{seen}");
    // Other names that were in use for the same things.
    for other in ["阵列", "封签码", "非一致", "交接链"] {
        assert!(!source.contains(other), "the program says {other}: see 'Words' of MANUAL.md");
    }
}

/// What the days show is what `tests/manual-day` runs.
#[test]
fn the_days_are_those_of_the_script() {
    let shown: BTreeSet<&str> = fenced("console").into_iter().flat_map(str::lines).filter_map(command).collect();
    assert!(shown.len() > 30, "{}", shown.len());
    for verb in ["init", "seed", "status", "seal", "verify", "report", "custody", "import", "restore", "scan", "erase"]
    {
        assert!(
            shown.iter().any(|c| c.starts_with(&format!("motiongear {verb} ")) || *c == format!("motiongear {verb}")),
            "no day shows {verb}"
        );
        assert!(DAY.contains(&format!("motiongear {verb}")), "tests/manual-day does not run {verb}");
    }
}

/// `db01# COMMAND`.
fn command(line: &'static str) -> Option<&'static str> {
    let (host, command) = line.split_once("# ")?;
    ["db01", "dc-op1"].contains(&host).then_some(command)
}

//! The plan file of a seed.

use super::{Input, Verdict, is_name, is_text};
use motiongear::copy::windows::Windows;
use motiongear::plan::{DISK_LIMIT, Plan, WINDOW_LIMIT};
use std::time::Duration;

const VALID: &str = include_str!("valid/plan.toml");

pub fn run(data: &[u8]) -> Verdict {
    let text = match data.split_first() {
        Some((0, edits)) => {
            let mut text = VALID.as_bytes().to_vec();
            Input::new(edits).edit(&mut text, 16);
            text
        }
        _ => data.to_vec(),
    };
    let plan = Plan::parse(&String::from_utf8_lossy(&text));
    if let Ok(plan) = &plan {
        assert!((1..=DISK_LIMIT).contains(&plan.disks().count()));
        for (machine, disk) in plan.disks() {
            assert!(is_name(&machine.name) && is_name(&disk.name), "{}/{}", machine.name, disk.name);
            assert!(!disk.source.to_string().is_empty());
            assert!(disk.exclude.as_deref().is_none_or(|reason| is_text(reason) && !reason.trim().is_empty()));
            let hooks = &machine.hooks;
            assert!(
                hooks.freeze.is_none()
                    || (hooks.thaw.is_some() && (hooks.snapshot.is_some() || machine.monitor().is_some()))
            );
            for hook in [&hooks.freeze, &hooks.snapshot, &hooks.thaw, &hooks.discard].into_iter().flatten() {
                assert!(!hook.command[0].is_empty() && hook.timeout > Duration::ZERO);
                assert!(hook.timeout <= Duration::from_secs(86_400));
            }
        }
        let limits = &plan.limits;
        assert!(limits.cpu_percent.is_none_or(|cpu| (1..=100).contains(&cpu)));
        assert!(limits.jobs.is_none_or(|jobs| jobs >= 1) && limits.read_bytes_per_second != Some(0));
        // What a plan accepts is what a job can keep, at any time of day.
        assert!(plan.windows.len() <= WINDOW_LIMIT);
        let windows = Windows::new(&plan.windows).unwrap();
        for at in ["2026-03-29T00:30:00Z", "2026-11-20T23:59:59Z", "9999-12-30T00:00:00Z"] {
            let at = at.parse().unwrap();
            let (rate, next) = (windows.rate_at(at), windows.next_change(at));
            assert!(next.is_none_or(|next| next > at && windows.rate_at(next) != rate));
        }
    }
    Verdict::from(&plan)
}

pub fn seeds() -> Vec<Vec<u8>> {
    let least = "[[machine]]\nname = \"a\"\n[[machine.disk]]\nname = \"b\"\nsource = \"/dev/c\"\n";
    vec![
        VALID.as_bytes().to_vec(),
        vec![0],
        least.as_bytes().to_vec(),
        format!("{least}{least}").into_bytes(),
        format!("limits = {{ read = \"1e3KiB\", cpu = 0x10 }}\n{least}").into_bytes(),
        format!("window = [{{ from = \"00:00\", to = \"24:00\", rate = \"0\" }}]\n{least}").into_bytes(),
        [&[b'['; 2000][..], b"a"].concat(),
        [b"a = ".as_slice(), &[b'{'; 500], &[b'['; 500]].concat(),
    ]
}

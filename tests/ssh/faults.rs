//! Goal: what goes wrong on the way to a machine, or there, is waited for or said with what to do; nothing of ours outlives the
//! connection, and nobody there can make us take up memory or wrong bytes. Method: a real sshd that is killed and stopped, and
//! far sides that lie.

use super::far::{Far, LIMIT, committed};
use crate::common::{Background, Branch, b3sum, noise, tool};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;
const FROZEN: &[&str] = &["--point-in-time"];

fn disk(branch: &Branch, mib: u64) -> PathBuf {
    let path = branch.place.join("disk.raw");
    noise(&path, mib * MIB, 8);
    path
}

/// A seed at `rate` that has begun to commit.
fn start(branch: &Branch, far: &Far, disk: &Path, rate: &str) -> Background {
    let text = far.text(disk);
    let command = far.seed_command(branch, &[("sda", &text)], &["--point-in-time", "--read-limit", rate]);
    let mut running = command.start();
    assert!(running.until(LIMIT, |_| committed(branch) > 0), "{}", running.said());
    running
}

/// MANUAL: "A connection that breaks is made anew".
#[test]
fn a_connection_that_breaks_is_made_anew_and_the_seed_goes_on() {
    let branch = Branch::ready();
    let mut far = Far::plain(&branch);
    let raw = disk(&branch, 40);
    let mut running = start(&branch, &far, &raw, "2MiB");
    far.kill();
    let note = "db01/sda: its source has not answered for ";
    assert!(running.until(LIMIT, |running| running.said().contains(note)), "{}", running.said());
    far.start();
    assert!(running.until(LIMIT, |running| running.said().contains("answers again")), "{}", running.said());
    // Its sessions alone.
    far.signal(libc::SIGKILL);
    branch.run(["limit", "--read", "off"]).ok();
    let seeded = running.wait().ok();
    assert_eq!(
        (&seeded["disks"][0]["digest"], &seeded["disks"][0]["read_bytes"]),
        (&b3sum(&raw).into(), &(40 * MIB).into())
    );
    assert!(far.is_left_alone(), "{:?}", far.running());
}

#[test]
fn another_disk_at_the_place_of_one_that_was_lost_ends_the_seed() {
    let branch = Branch::ready();
    let mut far = Far::plain(&branch);
    let raw = disk(&branch, 40);
    let running = start(&branch, &far, &raw, "2MiB");
    far.kill();
    noise(&raw, 41 * MIB, 9);
    far.start();
    running.wait().refused(1, &["is not the same disk any more", "expected 41943040 bytes, found 42991616"]);
}

/// MANUAL: "nothing of it stays there".
#[test]
fn nothing_runs_there_any_more_after_sigkill_here() {
    let branch = Branch::ready();
    let far = Far::plain(&branch);
    let raw = disk(&branch, 40);
    let running = start(&branch, &far, &raw, "10MiB");
    assert!(!far.running().is_empty());
    let before = committed(&branch);
    running.kill();
    assert!(far.is_left_alone(), "{:?}", far.running());
    let seeded = far.seed(&branch, &raw, FROZEN).ok();
    assert_eq!(seeded["disks"][0]["digest"], b3sum(&raw));
    assert!(seeded["disks"][0]["skipped_bytes"].as_u64().unwrap() >= before * MIB, "{seeded}");
}

#[test]
fn a_far_side_that_stalls_is_shown_and_waited_for_and_ctrl_c_does_not_wait() {
    let branch = Branch::ready();
    let far = Far::plain(&branch);
    let raw = disk(&branch, 40);
    let mut running = start(&branch, &far, &raw, "2MiB");
    far.signal(libc::SIGSTOP);
    let waiting = |_: &Background| {
        let status = branch.run(["status"]).ok();
        status["jobs"][0]["progress"]["waiting"][0]["name"] == "db01/sda"
    };
    assert!(running.until(LIMIT, waiting), "{}", running.said());
    // What this machine is busy with may have been said before.
    let times = |running: &Background, note: &str| running.said().matches(note).count();
    let note = "db01/sda: its source has not answered for ";
    assert!(
        running.until(LIMIT, |running| times(running, note) > times(running, "answers again")),
        "{}",
        running.said()
    );
    let before = times(&running, "answers again");
    far.signal(libc::SIGCONT);
    assert!(running.until(LIMIT, |running| times(running, "answers again") > before), "{}", running.said());
    far.signal(libc::SIGSTOP);
    std::thread::sleep(Duration::from_secs(1));
    running.signal(libc::SIGINT);
    let since = Instant::now();
    running.wait().refused(5, &["Job stopped by SIGINT"]);
    assert!(since.elapsed() < LIMIT, "{:?}", since.elapsed());
    far.signal(libc::SIGCONT);
    assert!(far.is_left_alone(), "{:?}", far.running());
    assert_eq!(far.seed(&branch, &raw, FROZEN).ok()["disks"][0]["digest"], b3sum(&raw));
}

/// A `dd` that somebody ends there is asked again; one that is ended every time is not asked for ever.
#[test]
fn a_dd_that_is_ended_there_is_asked_again_but_not_for_ever() {
    for (times, code) in [(2, 0), (1000, 1)] {
        let branch = Branch::ready();
        let raw = disk(&branch, 8);
        let count = branch.place.join("count");
        // Those that read whole blocks, and so many of them.
        let dd = format!(
            "case \"$*\" in *of=*|*bs=4096*|*bs=65536*) ;; *) n=`cat {0} 2>/dev/null`; echo $((n + 1)) > {0}; test ${{n:-0}} -lt {times} && kill -9 $$ ;; esac; exec /usr/bin/dd \"$@\"",
            count.display()
        );
        let far = Far::with(&branch, &Far::scripts(&branch, "bin", &[("dd", &dd)]));
        let ran = far.seed(&branch, &raw, FROZEN);
        match code {
            0 => assert_eq!(ran.ok()["disks"][0]["digest"], b3sum(&raw)),
            _ => drop(ran.refused(1, &["Disk db01/sda", "its source was lost 6 times in a row"])),
        }
    }
}

/// MANUAL: the table of errors of this section.
#[test]
fn whatever_is_in_the_way_is_said_with_what_to_do() {
    let branch = Branch::ready();
    let mut far = Far::plain(&branch);
    let raw = disk(&branch, 1);
    let refuse = |far: &Far, path: &Path, code: i32, parts: &[&str]| {
        far.seed(&branch, path, &[]).refused(code, &[&[far.text(path).to_str().unwrap()], parts].concat());
        assert!(branch.packs().is_empty());
    };
    refuse(&far, &branch.place.join("nothing"), 1, &["cannot be read there", "No such file", "next: list its disks"]);
    refuse(&far, branch.place.path(), 2, &["expected a disk there, found a directory"]);
    refuse(&far, Path::new("/dev/zero"), 1, &["a source without end"]);
    let pipe = branch.place.join("pipe");
    tool("mkfifo", [&pipe]);
    refuse(&far, &pipe, 2, &["found a named pipe"]);
    far.client("other");
    refuse(&far, &raw, 1, &["Permission denied (publickey", "next: nobody is asked for a password here"]);
    far.client("client");
    far.know("other");
    refuse(&far, &raw, 1, &["Host key verification failed", "next: as the user that runs this", "ssh-keygen -R"]);
    far.forget();
    refuse(&far, &raw, 1, &["Host key verification failed", "compare the key"]);
    far.know("host");
    far.kill();
    refuse(&far, &raw, 1, &["Connection refused", "next: see whether this works: ssh -o BatchMode=yes far true"]);
    let again = |options: &str, path: &Path, parts: &[&str]| {
        let own = Branch::ready();
        let far = Far::with(&own, options);
        far.seed(&own, path, &[]).refused(1, parts);
        assert!(far.is_left_alone(), "{options}: {:?}", far.running());
    };
    tool("chmod", ["600", raw.to_str().unwrap()]);
    let nobody = "ForceCommand setpriv --reuid=65534 --regid=65534 --clear-groups sh\n";
    again(nobody, &raw, &["cannot be read there", "Permission denied", "next: log in as somebody who may read it"]);
    again("ForceCommand echo no shell for you\n", &raw, &["ended with status 0: no shell for you"]);
    again("Ciphers aes128-cbc\n", &raw, &["no matching cipher found", "next: allow, for this host only"]);
    let no_dd = Far::scripts(&branch, "no-dd", &[("dd", "echo 'sh: dd: not found' >&2; exit 127")]);
    again(&no_dd, &raw, &["dd: not found", "next: there is no dd on the path"]);
    // Without any server.
    for (source, found) in [("ssh:-x:/dev/sda", "begins with a hyphen"), ("ssh:far:dev/sda", "no absolute path")] {
        branch.seed(&[("sda", Path::new(source))], &[]).refused(2, &["expected ssh:[USER@]HOST:/PATH", found]);
    }
    let no_ssh = far.seed_command(&branch, &[("sda", &far.text(&raw))], &[]).env("MOTIONGEAR_SSH", "/no/ssh");
    no_ssh.run().refused(1, &["/no/ssh cannot be started", "next: install the OpenSSH client"]);
}

/// MANUAL: "is not believed".
#[test]
fn a_far_side_that_lies_ends_the_seed_in_bounded_memory() {
    let real = "/usr/bin/dd";
    // What becomes of a read of whole blocks; probing is left alone.
    let reads = |what: &str| format!("case \"$*\" in *of=*|*bs=4096*|*bs=65536*) exec {real} \"$@\" ;; esac\n{what}");
    let of_dd = |branch: &Branch, what: &str| Far::scripts(branch, "bin", &[("dd", &reads(what))]);
    let forced = |what: &str| format!("ForceCommand {what}\n");
    let cases: [(&str, &dyn Fn(&Branch) -> String, &[&str]); 8] = [
        (
            "floods before the hello",
            &|_| forced("cat /dev/zero"),
            &["expected an answer after at most 262144 bytes", "a plain shell"],
        ),
        ("floods with lines", &|_| forced("yes no"), &["expected an answer after at most 262144 bytes"]),
        ("closes at once", &|_| forced("true"), &["ended with status 0"]),
        ("is no shell but an echo", &|_| forced("head -c 500"), &["ended with status 0"]),
        (
            "floods instead of data",
            &|b| of_dd(b, "exec cat /dev/zero"),
            &["cannot be read", "expected an answer after at most 1114112 bytes"],
        ),
        (
            "gives more",
            &|b| of_dd(b, &format!("{real} \"$@\"; echo more")),
            &["cannot be read", "expected at most 1048576 bytes", "found '1048581 bytes'"],
        ),
        ("gives nothing", &|b| of_dd(b, "exit 0"), &["the source gave less than was asked for"]),
        ("gives up", &|b| of_dd(b, "echo 'dd: no more' >&2; exit 1"), &["cannot be read", "dd: no more"]),
    ];
    for (name, options, parts) in cases {
        let branch = Branch::ready();
        let raw = disk(&branch, 4);
        let far = Far::with(&branch, &options(&branch));
        let running = far.seed_command(&branch, &[("sda", &far.text(&raw))], FROZEN).start();
        let (ran, peak) = running.wait_with_peak();
        eprintln!("{name}: {} MiB", peak >> 20);
        ran.refused(1, parts);
        assert!(peak < 300 * MIB, "{name}: {peak}");
        assert!(far.is_left_alone(), "{name}: {:?}", far.running());
    }
}

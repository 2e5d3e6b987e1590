//! Steps back behind everything else on the source host: nice 19 and the idle I/O class, and for what computes idle time only.

use std::io;

const IOPRIO_WHO_PROCESS: libc::c_long = 1;
const IOPRIO_CLASS_SHIFT: u32 = 13;
const IOPRIO_CLASS_IDLE: libc::c_long = 3;

/// Puts the calling thread, and with it every thread it starts from now on, at nice 19 and in the idle I/O class.
/// Call it once at job start, before any worker is started. Returns what could not be had, as notes for people: a
/// container may forbid it, and some I/O schedulers (`none`, `mq-deadline` before 5.14) ignore the class; limits still hold.
pub fn yield_to_host() -> Vec<String> {
    let mut notes = Vec::new();
    // SAFETY: no pointers; `who` 0 is the calling thread.
    if unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 19) } != 0 {
        notes.push(format!("Priority: nice 19 was refused: {}", io::Error::last_os_error()));
    }
    let idle = IOPRIO_CLASS_IDLE << IOPRIO_CLASS_SHIFT;
    // SAFETY: no pointers; `who` 0 is the calling thread.
    if unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0 as libc::c_long, idle) } != 0 {
        notes.push(format!("Priority: the idle I/O class was refused: {}", io::Error::last_os_error()));
    }
    notes
}

/// Leaves the calling thread only the CPU time that nobody else wants (SCHED_IDLE, sched(7)): for threads that compute. The
/// host's threads take its place at once, and so do this job's own readers and writers, which only hand on: at the same
/// priority they waited half a millisecond for every block while the disk stood still.
pub fn compute_in_idle_time() {
    let none = libc::sched_param { sched_priority: 0 };
    // SAFETY: `none` is a valid parameter; 0 is the calling thread. Where it is refused, nice 19 remains.
    unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, &none) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_inherit_what_the_caller_was_given() {
        // In a thread of its own: nice cannot be taken back without privilege.
        std::thread::spawn(|| {
            let notes = yield_to_host();
            let inherited = std::thread::spawn(|| {
                // SAFETY: no pointers; 0 is the calling thread.
                unsafe {
                    (
                        libc::getpriority(libc::PRIO_PROCESS, 0),
                        libc::syscall(libc::SYS_ioprio_get, IOPRIO_WHO_PROCESS, 0 as libc::c_long),
                    )
                }
            })
            .join()
            .unwrap();
            if notes.is_empty() {
                assert_eq!(inherited, (19, IOPRIO_CLASS_IDLE << IOPRIO_CLASS_SHIFT));
            }
        })
        .join()
        .unwrap();
    }
}

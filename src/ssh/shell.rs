//! The script that runs on the far side, and what it says. No input or output here.

use std::io::{Error, ErrorKind};

/// The largest unit of a request, bytes: a whole block of the usual size is one read of `dd`, past the page cache a fast one.
const MOST_UNIT: u64 = 1 << 20;
/// What every disk addresses at least.
const SECTOR: u64 = 512;

/// The script for `path`, as it goes into the standard input of a `sh`: one compound command, so that it is read to its end before
/// it runs. `token` comes back at both ends of the hello; it is sent in two pieces, so that an echo of the script is none.
///
/// For the oldest of shells: no `$(…)`, no `printf`, no arithmetic.
pub fn script(path: &str, token: &str) -> String {
    let path = path.replace('\'', r"'\''");
    let (a, b) = token.split_at(token.len() / 2);
    format!(
        r#"{{
LC_ALL=C; export LC_ALL
PATH=$PATH:/usr/bin:/bin:/usr/sbin:/sbin; export PATH
a={a}; b={b}
p='{path}'
set -f
exec 3>&1
renice 10 -p $$ >/dev/null 2>&1 </dev/null || renice -n 10 -p $$ >/dev/null 2>&1 </dev/null
ionice -c 3 -p $$ >/dev/null 2>&1 </dev/null
r=0; w=; f=buffered; z=; k=other
if test -d "$p"; then k=directory
elif test -p "$p"; then k=pipe
elif test -b "$p"; then k=block
elif test -c "$p"; then k=character
elif test -f "$p"; then k=file
fi
case $k in directory|pipe) r=1 ;; *)
    w=`dd if="$p" of=/dev/null bs=4096 count=1 2>&1 </dev/null`; r=$?
esac
case $r in 0)
    w=
    dd if="$p" of=/dev/null bs=4096 count=1 iflag=direct >/dev/null 2>&1 </dev/null && f=direct
esac
case $k$f in blockbuffered) blockdev --flushbufs "$p" >/dev/null 2>&1 </dev/null ;; esac
case $k in
block) z=`blockdev --getsize64 "$p" 2>/dev/null </dev/null` ;;
file) set x `ls -lnL "$p" 2>/dev/null </dev/null`; z=$6 ;;
esac
i=
case $k in file) set x `ls -inL "$p" 2>/dev/null </dev/null`; i=$2 ;; esac
set x `cat /etc/machine-id /var/lib/dbus/machine-id 2>/dev/null </dev/null`; m=$2
case $m in '') set x `uname -n 2>/dev/null </dev/null`; m=$2 ;; esac
case $m$i in *\\*) m=; i= ;; esac
case $w in *\\*) w='(it said something with a backslash)' ;; esac
echo "$a$b $r $k $f ${{z:-0}} ${{m:--}} ${{i:-0}} $w $a$b"
while read n b s c f; do
    w=`dd if="$p" bs=$b skip=$s count=$c $f 2>&1 >&3 3>&- </dev/null`
    r=$?
    case $r in 0) w= ;; esac
    case $w in *\\*) w='(it said something with a backslash)' ;; esac
    echo "$n $r $w $n"
done
exit
}}
"#
    )
}

/// A range in the units of `dd`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Units {
    /// Bytes of one.
    pub unit: u64,
    /// Units before the range.
    pub skip: u64,
    /// Units of the range; at the end of the disk the last one may not be full.
    pub count: u64,
}

impl Units {
    /// The largest units that fit.
    ///
    /// # Errors
    /// `InvalidInput`: the range is not of whole sectors, and does not end where the disk does.
    pub fn of(offset: u64, len: u64, disk_bytes: u64) -> std::io::Result<Units> {
        let last = offset.checked_add(len) == Some(disk_bytes);
        let fits = |unit: u64| offset.is_multiple_of(unit) && (last || len.is_multiple_of(unit));
        let mut units = std::iter::successors(Some(MOST_UNIT), |unit| Some(unit / 2)).take_while(|u| *u >= SECTOR);
        let Some(unit) = units.find(|unit| fits(*unit)) else {
            let text = format!("{len} bytes from byte {offset} on are no whole sectors");
            return Err(Error::new(ErrorKind::InvalidInput, text));
        };
        Ok(Units { unit, skip: offset / unit, count: len.div_ceil(unit) })
    }

    /// The line that asks for it.
    pub fn line(&self, token: &str, direct: bool) -> String {
        let Units { unit, skip, count } = self;
        format!("{token} {unit} {skip} {count}{}\n", if direct { " iflag=direct" } else { "" })
    }
}

/// What stands behind the data: how `dd` ended, and what it said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trailer {
    /// Exit code as the shell has it; above 128 for a signal.
    pub status: u32,
    /// Standard error, where the exit code is not 0.
    pub words: String,
}

/// Finds the trailer at the end of `received`, and where it begins; `None` while it is not complete.
///
/// # Errors
/// `InvalidData`: no exit code stands in it.
pub fn trailer(received: &[u8], token: &str) -> std::io::Result<Option<(usize, Trailer)>> {
    let (begin, end) = (format!("{token} "), format!(" {token}\n"));
    let Some(rest) = received.strip_suffix(end.as_bytes()) else { return Ok(None) };
    let Some(at) = rest.windows(begin.len()).rposition(|window| window == begin.as_bytes()) else { return Ok(None) };
    let text = String::from_utf8_lossy(&rest[at + begin.len()..]);
    let (status, words) = text.split_once(' ').unwrap_or((&text, ""));
    let status = status.parse().map_err(|_| wrong("an exit code", status))?;
    Ok(Some((at, Trailer { status, words: one_line(words) })))
}

impl Trailer {
    /// What a `dd` that ended so says of a disk of which it delivered fewer bytes than asked for.
    pub fn error(&self) -> Error {
        let Trailer { status, words } = self;
        let says = |what: &str| words.contains(what);
        match () {
            () if *status == 0 => ErrorKind::UnexpectedEof.into(),
            // Somebody there ended it, or there was no room for one process more; the disk is not to blame.
            () if *status > 128 => Error::new(
                ErrorKind::ConnectionAborted,
                format!("dd was ended or could not be started (status {status})"),
            ),
            // It opened the disk and could not read: the counts come after the failure. Where a dd keeps them for itself, the
            // system's words for it tell.
            () if self.is_media() || says("records in") && !self.is_other() => Error::from_raw_os_error(libc::EIO),
            () if words.is_empty() => Error::other(format!("dd ended with status {status} and said nothing")),
            () => Error::other(words.clone()),
        }
    }

    /// Whether what it says fits the end of a disk: nothing wrong, or that there is nothing to go to.
    pub fn may_be_the_end(&self) -> bool {
        const ENDS: [&str; 6] =
            ["cannot skip", "cannot seek", "no such device or address", "invalid argument", "past end", "beyond end"];
        let words = self.words.to_ascii_lowercase();
        self.status == 0 || ENDS.iter().any(|end| words.contains(end))
    }

    /// Whether it names a failure that is not the medium's.
    fn is_other(&self) -> bool {
        const OTHERS: [&str; 10] = [
            "cannot allocate memory",
            "not enough space",
            "memory exhausted",
            "stale",
            "no such device",
            "invalid argument",
            "cannot skip",
            "cannot seek",
            "permission denied",
            "not permitted",
        ];
        let words = self.words.to_ascii_lowercase();
        OTHERS.iter().any(|other| words.contains(other))
    }

    /// Whether it says outright that a sector cannot be read.
    pub fn is_media(&self) -> bool {
        let words = self.words.to_ascii_lowercase();
        self.status != 0 && (words.contains("input/output error") || words.contains("i/o error"))
    }
}

/// What a far side says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// `block`, `character`, `file`, `directory`, `pipe`, `other`.
    pub kind: String,
    /// Whether `dd` can read past the page cache.
    pub direct: bool,
    /// The size that the system there gives, bytes; a hint.
    pub bytes: Option<u64>,
    /// What its machine says of itself: its machine-id, else its host name.
    pub host: Option<String>,
    /// Of a file, its inode.
    pub inode: Option<u64>,
    /// How a read of its first page ended.
    pub first: Trailer,
}

impl Hello {
    /// From what stands between the tokens.
    ///
    /// # Errors
    /// `InvalidData`: something else stands there.
    pub fn of(said: Trailer) -> std::io::Result<Hello> {
        let Trailer { status, words } = said;
        let mut fields = words.splitn(6, ' ');
        let mut next = || fields.next().ok_or_else(|| wrong("what the disk is, its size and its machine", &words));
        let (kind, cache, bytes, host, inode) = (next()?, next()?, next()?, next()?, next()?);
        let first = Trailer { status, words: fields.next().unwrap_or_default().trim().to_owned() };
        let number = |text: &str| text.parse().ok().filter(|number| *number > 0);
        let host = Some(host.to_owned()).filter(|host| host != "-");
        let (bytes, inode) = (number(bytes), number(inode));
        Ok(Hello { kind: kind.to_owned(), direct: cache == "direct", bytes, host, inode, first })
    }
}

/// A breach of our own protocol.
pub fn wrong(expected: &str, found: &str) -> Error {
    let found: String = found.chars().take(200).collect();
    Error::new(ErrorKind::InvalidData, format!("the far side: expected {expected}, found '{}'", one_line(&found)))
}

/// Fit to stand in a message: the end of what is too long.
pub fn one_line(text: &str) -> String {
    let clean: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let words: Vec<&str> = clean.split(' ').filter(|word| !word.is_empty()).collect();
    let line = words.join(" ");
    let over = line.chars().count().saturating_sub(1000);
    line.chars().skip(over).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn ranges_become_units_that_stay_small() {
        let units = |offset, len, bytes| Units::of(offset, len, bytes).map(|u| (u.unit, u.skip, u.count)).ok();
        assert_eq!(units(0, MIB, 9 * MIB), Some((MIB, 0, 1)));
        // A page of a disk of 8 TiB, and a block of one of 2 PiB: below 2^31.
        assert_eq!(units((8 << 40) - 4096, 4096, 1 << 50), Some((4096, (1 << 31) - 1, 1)));
        assert_eq!(units((2 << 50) - MIB, MIB, 1 << 60), Some((MIB, (1 << 31) - 1, 1)));
        assert_eq!(units(3 * 4096, 64 << 10, 9 * MIB), Some((4096, 3, 16)));
        // The end of a disk of 3 MiB + 777 bytes.
        assert_eq!(units(3 * MIB, 777, 3 * MIB + 777), Some((MIB, 3, 1)));
        assert_eq!(units(3 * MIB, 512, 4 * MIB), Some((512, 6144, 1)));
        assert_eq!(units(3 * MIB, 777, 4 * MIB), None);
        assert_eq!(units(77, 512, 4 * MIB), None);
        assert_eq!(units(u64::MAX, 512, 4 * MIB), None);
    }

    #[test]
    fn a_trailer_is_found_behind_any_data_and_not_before_it_is_complete() {
        let said = |bytes: &[u8]| trailer(bytes, "T0k").unwrap();
        let ok = |status, words: &str| Trailer { status, words: words.to_owned() };
        assert_eq!(said(b"T0k 0  T0k\n"), Some((0, ok(0, ""))));
        assert_eq!(said(b"\0\xffdata\nT0k 1 dd: x\n0+0 records in T0k\n"), Some((7, ok(1, "dd: x 0+0 records in"))));
        for cut in 1..11 {
            assert_eq!(said(&b"T0k 0  T0k\n"[..11 - cut]), None, "{cut}");
        }
        assert_eq!(said(b""), None);
        assert!(trailer(b"T0k x T0k\n", "T0k").is_err());
        let hello = Hello::of(ok(0, "file direct 4096 db07 77")).unwrap();
        assert_eq!((hello.kind.as_str(), hello.direct, hello.bytes), ("file", true, Some(4096)));
        assert_eq!((hello.host.as_deref(), hello.inode), (Some("db07"), Some(77)));
        let hello = Hello::of(ok(1, "other buffered 0 - 0 dd: /x: Permission denied")).unwrap();
        assert_eq!((&hello.host, hello.inode), (&None, None));
        assert_eq!((hello.bytes, hello.first), (None, ok(1, "dd: /x: Permission denied")));
        assert!(Hello::of(ok(0, "block")).is_err());
    }

    #[test]
    fn what_a_dd_says_becomes_the_right_error() {
        let error = |status, words: &str| Trailer { status, words: words.to_owned() }.error();
        assert_eq!(error(0, "").kind(), ErrorKind::UnexpectedEof);
        for words in [
            "dd: error reading '/dev/sda': Input/output error 5+0 records in 5+0 records out",
            "dd: /dev/sda: Input/output error",
            "dd: /dev/sda: I/O error",
            "dd: 0511-051 The read failed. 3+0 records in. 3+0 records out.",
        ] {
            assert_eq!(error(1, words).raw_os_error(), Some(libc::EIO), "{words}");
        }
        for words in [
            "dd: memory exhausted by input buffer of size 1048576 bytes 0+0 records in 0+0 records out",
            "dd: error reading '/dev/sda': Stale file handle 5+0 records in 5+0 records out",
            "dd: error reading '/dev/sda': No such device 0+0 records in 0+0 records out",
        ] {
            let other = error(1, words);
            assert!(other.raw_os_error().is_none() && other.to_string() == words, "{other}");
        }
        assert_eq!(error(143, "Terminated").kind(), ErrorKind::ConnectionAborted);
        let gone = error(1, "dd: failed to open '/dev/sda': No such file or directory");
        assert!(gone.raw_os_error().is_none() && gone.to_string().contains("No such file"), "{gone}");
        assert!(error(2, "").to_string().contains("status 2 and said nothing"));
    }
}

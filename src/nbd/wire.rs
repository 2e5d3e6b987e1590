//! The bytes of the NBD protocol, without any input or output: what is sent, and what a header says. All integers are
//! big-endian. Source: <https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md>, extended headers from its branch
//! `extension-ext-header`.

use std::io::{Error, ErrorKind, Result};

/// First of all, from the server.
pub const MAGIC: u64 = 0x4e42_444d_4147_4943;
/// Before the handshake flags and before every option.
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// Before every reply to an option.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
pub(super) const REQUEST_MAGIC: u32 = 0x2560_9513;
const EXTENDED_REQUEST_MAGIC: u32 = 0x21e4_1c71;
pub(super) const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
pub(super) const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;
const EXTENDED_REPLY_MAGIC: u32 = 0x6e8a_278c;

/// Handshake flag of both sides: options get replies.
pub const FIXED_NEWSTYLE: u16 = 1;
/// Handshake flag of both sides: no padding after `NBD_OPT_EXPORT_NAME`.
pub const NO_ZEROES: u16 = 1 << 1;

/// The longest string that either side may send, bytes.
pub const MAX_STRING_BYTES: usize = 4096;
/// The largest payload where the server names no other limit, bytes.
pub const DEFAULT_MAX_PAYLOAD: u32 = 32 << 20;
/// Extents in one status chunk; servers should not send more.
pub const MAX_EXTENTS: usize = 1 << 20;

/// What is asked during the handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum HandshakeOption {
    /// Chooses the export and ends the handshake; the oldest way, which cannot be refused but by hanging up.
    ExportName = 1,
    /// Ends the handshake without an export.
    Abort = 2,
    /// Which exports there are.
    List = 3,
    /// Goes on with TLS.
    StartTls = 5,
    /// What an export is.
    Info = 6,
    /// Chooses the export and ends the handshake.
    Go = 7,
    /// Replies in chunks that say what they are.
    StructuredReply = 8,
    /// Which contexts an export has.
    ListMetaContext = 9,
    /// Which contexts block status shall tell of.
    SetMetaContext = 10,
    /// Structured replies with 64-bit lengths.
    ExtendedHeaders = 11,
}

impl HandshakeOption {
    /// The option of this number, if it is one that we know.
    pub fn of(number: u32) -> Option<HandshakeOption> {
        use HandshakeOption as O;
        let known = [
            O::ExportName,
            O::Abort,
            O::List,
            O::StartTls,
            O::Info,
            O::Go,
            O::StructuredReply,
            O::ListMetaContext,
            O::SetMetaContext,
            O::ExtendedHeaders,
        ];
        known.into_iter().find(|option| *option as u32 == number)
    }
}

/// `NBD_REP_ACK`.
pub const REP_ACK: u32 = 1;
/// `NBD_REP_SERVER`: the name of an export.
pub const REP_SERVER: u32 = 2;
/// `NBD_REP_INFO`.
pub const REP_INFO: u32 = 3;
/// `NBD_REP_META_CONTEXT`.
pub const REP_META_CONTEXT: u32 = 4;
/// Bit of every error reply.
pub const REP_ERROR: u32 = 1 << 31;

/// `NBD_INFO_EXPORT`: size and flags.
pub const INFO_EXPORT: u16 = 0;
/// `NBD_INFO_BLOCK_SIZE`: what sizes requests must have.
pub const INFO_BLOCK_SIZE: u16 = 3;

/// What a server can do, as its transmission flags say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Flags(pub u16);

impl Flags {
    /// Writes are refused.
    pub fn read_only(self) -> bool {
        self.0 & 1 << 1 != 0
    }
    /// Knows `NBD_CMD_FLUSH`.
    pub fn flush(self) -> bool {
        self.0 & 1 << 2 != 0
    }
    /// Knows `NBD_CMD_FLAG_FUA`.
    pub fn fua(self) -> bool {
        self.0 & 1 << 3 != 0
    }
    /// Knows `NBD_CMD_TRIM`.
    pub fn trim(self) -> bool {
        self.0 & 1 << 5 != 0
    }
    /// Knows `NBD_CMD_WRITE_ZEROES`.
    pub fn write_zeroes(self) -> bool {
        self.0 & 1 << 6 != 0
    }
    /// One flush covers all connections.
    pub fn multi_conn(self) -> bool {
        self.0 & 1 << 8 != 0
    }
    /// Knows `NBD_CMD_FLAG_FAST_ZERO`.
    pub fn fast_zero(self) -> bool {
        self.0 & 1 << 11 != 0
    }
}

/// What requests and replies look like after the handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Style {
    /// A reply is an error number and, for a read, the bytes.
    #[default]
    Simple,
    /// Replies in chunks.
    Structured,
    /// As structured, with 64-bit lengths in both directions.
    Extended,
}

/// What is asked of an export.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum Command {
    /// Bytes.
    Read = 0,
    /// Bytes follow.
    Write = 1,
    /// The session ends; no reply.
    Disconnect = 2,
    /// All that was answered is on stable storage.
    Flush = 3,
    /// The bytes are not needed any more.
    Trim = 4,
    /// The bytes become zero.
    WriteZeroes = 6,
    /// What is known of the bytes without reading them.
    BlockStatus = 7,
}

impl Command {
    /// The command of this number, if it is one that we know.
    pub fn of(number: u16) -> Option<Command> {
        use Command as C;
        let known = [C::Read, C::Write, C::Disconnect, C::Flush, C::Trim, C::WriteZeroes, C::BlockStatus];
        known.into_iter().find(|command| *command as u16 == number)
    }
}

/// Command flag: answered when it is on stable storage.
pub const FUA: u16 = 1;
/// Command flag of write-zeroes: the space stays allocated.
pub const NO_HOLE: u16 = 1 << 1;
/// Command flag of a read: the reply is one chunk.
pub const DF: u16 = 1 << 2;
/// Command flag of block status: one extent is enough.
pub const REQ_ONE: u16 = 1 << 3;
/// Command flag of write-zeroes: refused where it is no faster than writing.
pub const FAST_ZERO: u16 = 1 << 4;
/// Command flag of an extended request: the length is that of the payload.
const PAYLOAD_LEN: u16 = 1 << 5;

/// One request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// What.
    pub command: Command,
    /// [`FUA`], [`NO_HOLE`] …
    pub flags: u16,
    /// By which the reply is known.
    pub cookie: u64,
    /// First byte.
    pub offset: u64,
    /// How many; in compact style at most [`u32::MAX`].
    pub len: u64,
}

impl Request {
    /// The header, 28 bytes, or 32 in extended style. A write's payload follows it.
    ///
    /// # Errors
    /// A length that the style cannot say.
    pub fn encode(&self, style: Style) -> Result<Vec<u8>> {
        let Request { command, mut flags, cookie, offset, len } = *self;
        let extended = style == Style::Extended;
        if extended && command == Command::Write {
            flags |= PAYLOAD_LEN;
        }
        let mut out = Vec::with_capacity(32);
        out.extend(if extended { EXTENDED_REQUEST_MAGIC } else { REQUEST_MAGIC }.to_be_bytes());
        out.extend(flags.to_be_bytes());
        out.extend((command as u16).to_be_bytes());
        out.extend(cookie.to_be_bytes());
        out.extend(offset.to_be_bytes());
        match (extended, u32::try_from(len)) {
            (true, _) => out.extend(len.to_be_bytes()),
            (false, Ok(len)) => out.extend(len.to_be_bytes()),
            (false, Err(_)) => return Err(wrong("a request of less than 4 GiB", format!("one of {len} bytes"))),
        }
        Ok(out)
    }
}

/// The header of a reply, or of one chunk of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reply {
    /// Of the request.
    pub cookie: u64,
    /// What it is.
    pub kind: ReplyKind,
}

/// What a reply is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplyKind {
    /// The whole reply: an error number, 0 for none; a read's bytes follow where it is 0.
    Simple {
        /// NBD's number.
        error: u32,
    },
    /// One chunk.
    Chunk {
        /// No chunk of this reply comes after it.
        last: bool,
        /// What its payload is.
        chunk: Chunk,
        /// Bytes of payload.
        len: u64,
        /// In extended style, the offset of the request.
        offset: Option<u64>,
    },
}

/// What the payload of a chunk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chunk {
    /// Nothing: the reply is complete.
    None,
    /// An offset and bytes.
    Data,
    /// An offset and how many bytes from there are zero.
    Hole,
    /// Extents of one context.
    Status,
    /// The same in 64 bits.
    StatusExtended,
    /// An error number, and perhaps why, and where.
    Error,
}

/// Bytes of a reply's header. In structured style simple replies occur too, so its first four bytes decide.
///
/// # Errors
/// A magic number that does not belong to the style.
pub fn reply_header_bytes(style: Style, first: [u8; 4]) -> Result<usize> {
    match (style, u32::from_be_bytes(first)) {
        (Style::Simple | Style::Structured, SIMPLE_REPLY_MAGIC) => Ok(16),
        (Style::Structured, STRUCTURED_REPLY_MAGIC) => Ok(20),
        (Style::Extended, EXTENDED_REPLY_MAGIC) => Ok(32),
        (_, found) => Err(wrong("the magic number of a reply", format!("{found:#010x}"))),
    }
}

/// Reads a reply's header of [`reply_header_bytes`] bytes.
///
/// # Errors
/// Another length, or a chunk of a kind that no request of ours asks for.
pub fn decode_reply(header: &[u8]) -> Result<Reply> {
    let mut input = Input(header);
    let magic = input.u32()?;
    if magic == SIMPLE_REPLY_MAGIC {
        let error = input.u32()?;
        let cookie = input.u64()?;
        input.end()?;
        return Ok(Reply { cookie, kind: ReplyKind::Simple { error } });
    }
    let (flags, number, cookie) = (input.u16()?, input.u16()?, input.u64()?);
    let (offset, len) = match magic {
        EXTENDED_REPLY_MAGIC => (Some(input.u64()?), input.u64()?),
        _ => (None, u64::from(input.u32()?)),
    };
    input.end()?;
    let last = flags & 1 != 0;
    // Lengths that no chunk of the kind can have are refused before anything of them is read.
    let descriptors = MAX_EXTENTS as u64;
    let (chunk, lens) = match number {
        0 if !last => return Err(wrong("an empty chunk as the last one", "one that is not")),
        0 => (Chunk::None, 0..=0),
        1 => (Chunk::Data, 9..=u64::from(u32::MAX)),
        2 => (Chunk::Hole, 12..=12),
        5 => (Chunk::Status, 12..=4 + 8 * descriptors),
        6 => (Chunk::StatusExtended, 24..=8 + 16 * descriptors),
        _ if number & 1 << 15 != 0 => (Chunk::Error, 6..=6 + MAX_STRING_BYTES as u64 + 8),
        _ => return Err(wrong("a chunk that was asked for", format!("one of type {number}"))),
    };
    if !lens.contains(&len) {
        let (least, most) = lens.into_inner();
        return Err(wrong(
            &format!("a chunk of type {number} with {least} to {most} bytes of payload"),
            format!("one with {len}"),
        ));
    }
    Ok(Reply { cookie, kind: ReplyKind::Chunk { last, chunk, len, offset } })
}

/// What is known of a range without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Its length, at least 1.
    pub bytes: u64,
    /// What the context says of it.
    pub status: u64,
}

impl Extent {
    /// Status in `base:allocation`: nothing is allocated for it.
    pub const HOLE: u64 = 1;
    /// Status in `base:allocation`: it reads as zeros. Whether it is allocated as well is another bit, and no matter here.
    pub const ZERO: u64 = 1 << 1;
}

/// Reads the payload of a status chunk: the context's number and its extents in order.
///
/// # Errors
/// No extent, an empty one, or a count that is not what follows.
pub fn decode_status(extended: bool, payload: &[u8]) -> Result<(u32, Vec<Extent>)> {
    let mut input = Input(payload);
    let context = input.u32()?;
    if extended {
        let count = u64::from(input.u32()?);
        if count.checked_mul(16) != Some(input.0.len() as u64) {
            return Err(wrong("as many extents as counted", format!("{count} counted, {} bytes", input.0.len())));
        }
    }
    let mut extents = Vec::new();
    while !input.0.is_empty() {
        let extent = match extended {
            true => Extent { bytes: input.u64()?, status: input.u64()? },
            false => Extent { bytes: u64::from(input.u32()?), status: u64::from(input.u32()?) },
        };
        if extent.bytes == 0 {
            return Err(wrong("extents of at least one byte", "an empty one"));
        }
        extents.push(extent);
    }
    if extents.is_empty() {
        return Err(wrong("at least one extent", "none"));
    }
    Ok((context, extents))
}

/// Reads the payload of an error chunk: NBD's number and what the server says to people.
///
/// # Errors
/// A message longer than the payload, or the number 0.
pub fn decode_error(payload: &[u8]) -> Result<(u32, String)> {
    let mut input = Input(payload);
    let (error, len) = (input.u32()?, usize::from(input.u16()?));
    if error == 0 {
        return Err(wrong("an error in an error chunk", "the number 0"));
    }
    Ok((error, text(input.bytes(len)?)))
}

/// The system's error for NBD's number, of which there are few; an unknown one counts as `EINVAL`.
pub fn os_error(error: u32) -> Error {
    let known = [libc::EPERM, libc::EIO, libc::ENOMEM, libc::EINVAL, libc::ENOSPC, libc::EOVERFLOW];
    let code = match i32::try_from(error).unwrap_or(libc::EINVAL) {
        95 => libc::EOPNOTSUPP,
        108 => libc::ESHUTDOWN,
        code if known.contains(&code) => code,
        _ => libc::EINVAL,
    };
    Error::from_raw_os_error(code)
}

/// Text of the other side as it may be shown: printable, and not without end.
pub fn text(bytes: &[u8]) -> String {
    let shown = &bytes[..bytes.len().min(MAX_STRING_BYTES)];
    String::from_utf8_lossy(shown).chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// A breach of the protocol.
pub fn wrong(expected: &str, found: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::InvalidData, format!("NBD server: expected {expected}, found {found}"))
}

/// Bytes that are taken from the front.
pub struct Input<'a>(pub &'a [u8]);

impl<'a> Input<'a> {
    /// The next `n` bytes.
    ///
    /// # Errors
    /// There are fewer.
    pub fn bytes(&mut self, n: usize) -> Result<&'a [u8]> {
        let (taken, rest) = self
            .0
            .split_at_checked(n)
            .ok_or_else(|| wrong(&format!("{n} more bytes in a message"), format!("{}", self.0.len())))?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.bytes(N)?);
        Ok(array)
    }

    /// A 16-bit number.
    ///
    /// # Errors
    /// The message ends.
    pub fn u16(&mut self) -> Result<u16> {
        self.array().map(u16::from_be_bytes)
    }

    /// A 32-bit number.
    ///
    /// # Errors
    /// The message ends.
    pub fn u32(&mut self) -> Result<u32> {
        self.array().map(u32::from_be_bytes)
    }

    /// A 64-bit number.
    ///
    /// # Errors
    /// The message ends.
    pub fn u64(&mut self) -> Result<u64> {
        self.array().map(u64::from_be_bytes)
    }

    /// That nothing is left.
    ///
    /// # Errors
    /// Something is.
    pub fn end(&self) -> Result<()> {
        match self.0.len() {
            0 => Ok(()),
            more => Err(wrong("the end of a message", format!("{more} more bytes"))),
        }
    }
}

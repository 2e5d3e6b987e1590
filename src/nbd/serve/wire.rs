//! The bytes of the NBD protocol from the server's side, without any input or output. What both sides share is in
//! [`crate::nbd::wire`].

use crate::nbd::handshake::Sizes;
use crate::nbd::wire::{
    Extent, INFO_BLOCK_SIZE, INFO_EXPORT, Input, MAX_STRING_BYTES, OPTION_REPLY_MAGIC, REP_INFO, REQUEST_MAGIC,
    SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC,
};
use std::io::{Error, ErrorKind, Result};

/// Bytes of a request's header.
pub const REQUEST_BYTES: usize = 28;
/// What an export can do: read-only, flush, several connections.
pub const FLAGS: u16 = 1 | 1 << 1 | 1 << 2 | 1 << 8;
/// The same with structured replies: a read can be asked for in one chunk.
pub const FLAGS_STRUCTURED: u16 = FLAGS | 1 << 7;
/// Contexts that one client may ask for.
const MAX_QUERIES: u32 = 64;

/// A request as it came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asked {
    /// The number of the command, which may be none that we know.
    pub command: u16,
    /// Its flags.
    pub flags: u16,
    /// By which the reply is known.
    pub cookie: u64,
    /// First byte.
    pub offset: u64,
    /// How many.
    pub len: u32,
}

/// Reads the header of a request.
///
/// # Errors
/// It is none: after that no byte means anything.
pub fn decode_request(header: &[u8; REQUEST_BYTES]) -> Result<Asked> {
    let mut input = Input(header);
    let magic = input.u32()?;
    if magic != REQUEST_MAGIC {
        return Err(breach("the magic number of a request", format!("{magic:#010x}")));
    }
    let (flags, command, cookie) = (input.u16()?, input.u16()?, input.u64()?);
    Ok(Asked { command, flags, cookie, offset: input.u64()?, len: input.u32()? })
}

/// An option that names an export and what to know of it, or how block status shall be told of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// The export.
    pub export: String,
    /// Contexts; empty for `NBD_OPT_GO` and `NBD_OPT_INFO`, whose wishes change nothing.
    pub queries: Vec<String>,
}

/// Reads the data of `NBD_OPT_GO` or `NBD_OPT_INFO`.
///
/// # Errors
/// A name that is too long or no UTF-8, a count that is not what follows.
pub fn decode_go(data: &[u8]) -> Result<Named> {
    let mut input = Input(data);
    let export = string(&mut input)?;
    let wishes = input.u16()?;
    input.bytes(2 * usize::from(wishes))?;
    input.end()?;
    Ok(Named { export, queries: Vec::new() })
}

/// Reads the data of `NBD_OPT_SET_META_CONTEXT` or `NBD_OPT_LIST_META_CONTEXT`.
///
/// # Errors
/// As [`decode_go`]; more queries than anybody has.
pub fn decode_contexts(data: &[u8]) -> Result<Named> {
    let mut input = Input(data);
    let export = string(&mut input)?;
    let count = input.u32()?;
    if count > MAX_QUERIES {
        return Err(breach(&format!("at most {MAX_QUERIES} contexts"), count));
    }
    let queries = (0..count).map(|_| string(&mut input)).collect::<Result<_>>()?;
    input.end()?;
    Ok(Named { export, queries })
}

fn string(input: &mut Input<'_>) -> Result<String> {
    let len = input.u32()? as usize;
    if len > MAX_STRING_BYTES {
        return Err(breach(&format!("a name of at most {MAX_STRING_BYTES} bytes"), len));
    }
    let text = std::str::from_utf8(input.bytes(len)?).ok().filter(|text| !text.contains('\0'));
    text.map(str::to_owned).ok_or_else(|| breach("a name in UTF-8", "something else"))
}

/// A reply to an option.
pub fn option_reply(option: u32, kind: u32, payload: &[u8]) -> Vec<u8> {
    // No payload of ours is near 4 GiB.
    let len = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    let numbers = [option, kind, len].map(u32::to_be_bytes).concat();
    [&OPTION_REPLY_MAGIC.to_be_bytes()[..], &numbers, payload].concat()
}

/// What there is to know of an export: two replies to the option.
pub fn info(option: u32, bytes: u64, flags: u16, sizes: Sizes) -> Vec<u8> {
    let export = [&INFO_EXPORT.to_be_bytes()[..], &bytes.to_be_bytes(), &flags.to_be_bytes()].concat();
    let Sizes { minimum, preferred, maximum } = sizes;
    let sizes = [&INFO_BLOCK_SIZE.to_be_bytes()[..], &[minimum, preferred, maximum].map(u32::to_be_bytes).concat()];
    [option_reply(option, REP_INFO, &export), option_reply(option, REP_INFO, &sizes.concat())].concat()
}

/// A simple reply; a read's bytes follow where `error` is 0.
pub fn simple(cookie: u64, error: u32) -> Vec<u8> {
    [&SIMPLE_REPLY_MAGIC.to_be_bytes()[..], &error.to_be_bytes(), &cookie.to_be_bytes()].concat()
}

/// What a chunk of a structured reply is, with all of it that is short.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said<'a> {
    /// Nothing: the reply is complete.
    Nothing,
    /// So many bytes from an offset on follow.
    Data(u64, usize),
    /// So many bytes from an offset on are zero.
    Hole(u64, usize),
    /// Extents of the context of this number.
    Status(u32, &'a [Extent]),
    /// An error number.
    Error(u32),
    /// An error number, and the place.
    ErrorAt(u32, u64),
}

/// The head of a chunk and what it says; the bytes of [`Said::Data`] are to follow it.
pub fn chunk(cookie: u64, last: bool, said: &Said<'_>) -> Vec<u8> {
    let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let (kind, payload, follow) = match said {
        Said::Nothing => (0_u16, Vec::new(), 0),
        Said::Data(offset, bytes) => (1, offset.to_be_bytes().to_vec(), number(*bytes)),
        Said::Hole(offset, bytes) => (2, [&offset.to_be_bytes()[..], &number(*bytes).to_be_bytes()].concat(), 0),
        Said::Status(context, extents) => {
            let mut payload = context.to_be_bytes().to_vec();
            for Extent { bytes, status } in *extents {
                // Whoever tells extents was asked about less than 4 GiB.
                let compact = [*bytes, *status].map(|n| u32::try_from(n).unwrap_or(u32::MAX).to_be_bytes());
                payload.extend(compact.concat());
            }
            (5, payload, 0)
        }
        Said::Error(error) => (1 << 15 | 1, [&error.to_be_bytes()[..], &[0, 0]].concat(), 0),
        Said::ErrorAt(error, offset) => {
            (1 << 15 | 2, [&error.to_be_bytes()[..], &[0, 0], &offset.to_be_bytes()].concat(), 0)
        }
    };
    let len = number(payload.len()).saturating_add(follow);
    let head =
        [&STRUCTURED_REPLY_MAGIC.to_be_bytes()[..], &u16::from(last).to_be_bytes(), &kind.to_be_bytes()].concat();
    [&head[..], &cookie.to_be_bytes(), &len.to_be_bytes(), &payload].concat()
}

/// A breach of the protocol by a client.
pub fn breach(expected: &str, found: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::InvalidData, format!("NBD client: expected {expected}, found {found}"))
}

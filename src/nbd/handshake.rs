//! From a connected socket to an export: fixed newstyle negotiation with `NBD_OPT_GO`. Nothing that the server says is
//! believed before its bounds are checked.

use super::channel::Channel;
use super::tls::Client;
use super::wire::{
    DEFAULT_MAX_PAYLOAD, FIXED_NEWSTYLE, Flags, HandshakeOption, INFO_BLOCK_SIZE, INFO_EXPORT, Input, MAGIC,
    MAX_STRING_BYTES, NO_ZEROES, OPTION_MAGIC, OPTION_REPLY_MAGIC, REP_ACK, REP_ERROR, REP_INFO, REP_META_CONTEXT,
    Style, text, wrong,
};
use std::io::{Error, ErrorKind, Result};
use std::time::{Duration, Instant};

/// The longest reply to an option: a string and what belongs to it.
const MAX_REPLY_BYTES: u32 = MAX_STRING_BYTES as u32 + 64;
/// Replies to one option.
const MAX_REPLIES: usize = 1024;

/// What a client wants.
#[derive(Clone)]
pub struct Wishes<'a> {
    /// The export's name.
    pub export: &'a str,
    /// Contexts that block status shall tell of, such as `base:allocation`.
    pub contexts: &'a [String],
    /// Encryption, which is then a must.
    pub tls: Option<&'a Client>,
    /// The newest style to ask for.
    pub style: Style,
    /// How long each answer may take.
    pub patience: Duration,
}

/// What a server offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Export {
    /// Its size, bytes.
    pub bytes: u64,
    /// What it can do.
    pub flags: Flags,
    /// What both sides speak from now on.
    pub style: Style,
    /// What lengths requests must have.
    pub sizes: Sizes,
    /// The contexts of those wished for that it knows, and their numbers in this session.
    pub contexts: Vec<(String, u32)>,
}

impl Export {
    /// Whether two sessions are with one export, as far as they can tell.
    pub fn is_like(&self, other: &Export) -> bool {
        (self.bytes, self.flags, self.style, self.sizes) == (other.bytes, other.flags, other.style, other.sizes)
            && self.contexts.iter().map(|(name, _)| name).eq(other.contexts.iter().map(|(name, _)| name))
    }
}

/// What lengths requests must have, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// Offset and length are multiples of it; a power of two up to 64 KiB.
    pub minimum: u32,
    /// Multiples of it are served well; a power of two.
    pub preferred: u32,
    /// The longest read or write.
    pub maximum: u32,
}

impl Sizes {
    /// The longest read or write, in whole blocks and, where there is one, in whole pages.
    pub fn longest(self) -> u64 {
        let unit = self.minimum.max(4096);
        u64::from(if self.maximum < unit { self.maximum } else { self.maximum - self.maximum % unit })
    }
}

impl Default for Sizes {
    fn default() -> Sizes {
        Sizes { minimum: 1, preferred: 4096, maximum: DEFAULT_MAX_PAYLOAD }
    }
}

/// Negotiates. The channel is ready for requests afterwards.
///
/// # Errors
/// No NBD server, one too old, one that refuses, or one that breaks the protocol; each says what to do about it.
pub fn negotiate(channel: Channel, wishes: &Wishes) -> Result<(Channel, Export)> {
    let mut talk = Talk { channel, patience: wishes.patience };
    talk.greet()?;
    if let Some(client) = wishes.tls {
        talk.must(HandshakeOption::StartTls, &[])?;
        let until = Instant::now() + wishes.patience;
        talk.channel = talk.channel.encrypt(|socket| client.begin(socket), until).map_err(|error| {
            Error::new(error.kind(), format!("TLS could not be agreed with the NBD server: {error}"))
        })?;
    }
    let style = talk.style(wishes.style)?;
    let contexts = match (style, wishes.contexts) {
        (Style::Simple, _) | (_, []) => Vec::new(),
        (_, contexts) => talk.contexts(wishes.export, contexts)?,
    };
    let (bytes, flags, sizes) = talk.go(wishes.export)?;
    Ok((talk.channel, Export { bytes, flags, style, sizes, contexts }))
}

struct Talk {
    channel: Channel,
    patience: Duration,
}

/// The replies to an option, type and payload; or the server's refusal, and why.
type Answer = std::result::Result<Vec<(u32, Vec<u8>)>, (u32, String)>;

/// One reply to an option.
enum Reply {
    Done,
    Item { kind: u32, payload: Vec<u8> },
    Refused { code: u32, why: String },
}

impl Talk {
    fn greet(&mut self) -> Result<()> {
        let mut greeting = [0; 18];
        self.read(&mut greeting[..16]).map_err(|error| match error.kind() {
            // Whatever stands before a server that is away (a tunnel, a proxy) ends it so, too.
            ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset => {
                let text = "the server hung up before it said anything: it is full, or it is no NBD server";
                Error::new(ErrorKind::ConnectionAborted, text)
            }
            _ => error,
        })?;
        let mut input = Input(&greeting[..16]);
        if input.u64()? != MAGIC {
            return Err(wrong("NBDMAGIC", "something else: no NBD server listens there"));
        }
        if input.u64()? != OPTION_MAGIC {
            return Err(wrong("newstyle negotiation", "the one of before 2011: use a newer server"));
        }
        self.read(&mut greeting[16..])?;
        let flags = Input(&greeting[16..]).u16()?;
        if flags & FIXED_NEWSTYLE == 0 {
            return Err(wrong("fixed newstyle negotiation", "an older one: use a newer server"));
        }
        self.write(&u32::from(flags & (FIXED_NEWSTYLE | NO_ZEROES)).to_be_bytes())
    }

    fn style(&mut self, newest: Style) -> Result<Style> {
        for (style, option) in
            [(Style::Extended, HandshakeOption::ExtendedHeaders), (Style::Structured, HandshakeOption::StructuredReply)]
        {
            let wanted = style == newest || newest == Style::Extended;
            if wanted && self.ask(option, &[])?.is_ok() {
                return Ok(style);
            }
        }
        Ok(Style::Simple)
    }

    /// Those of `names` that the server knows.
    fn contexts(&mut self, export: &str, names: &[String]) -> Result<Vec<(String, u32)>> {
        let mut data = string(export)?;
        data.extend(count(names.len())?.to_be_bytes());
        for name in names {
            data.extend(string(name)?);
        }
        let Ok(items) = self.ask(HandshakeOption::SetMetaContext, &data)? else { return Ok(Vec::new()) };
        let mut found: Vec<(String, u32)> = Vec::new();
        for (kind, payload) in items {
            if kind != REP_META_CONTEXT {
                return Err(wrong("a context", format!("a reply of type {kind}")));
            }
            let mut input = Input(&payload);
            let id = input.u32()?;
            let name = std::str::from_utf8(input.0).ok().filter(|name| names.iter().any(|wanted| wanted == name));
            let name = name.ok_or_else(|| wrong("a context that was asked for", format!("{:.100}", text(input.0))))?;
            if found.iter().any(|(known, number)| known == name || *number == id) {
                return Err(wrong("each context once", format!("{name} or its number {id} again")));
            }
            found.push((name.to_owned(), id));
        }
        Ok(found)
    }

    fn go(&mut self, export: &str) -> Result<(u64, Flags, Sizes)> {
        let mut data = string(export)?;
        data.extend(1_u16.to_be_bytes());
        data.extend(INFO_BLOCK_SIZE.to_be_bytes());
        let items = self.must(HandshakeOption::Go, &data)?;
        let (mut found, mut sizes) = (None, Sizes::default());
        for (kind, payload) in items {
            let mut input = Input(&payload);
            match (kind, input.u16()?) {
                (REP_INFO, INFO_EXPORT) => {
                    let (bytes, flags) = (input.u64()?, Flags(input.u16()?));
                    input.end()?;
                    if bytes > i64::MAX as u64 {
                        return Err(wrong("an export of less than 8 EiB", format!("one of {bytes} bytes")));
                    }
                    if found.replace((bytes, flags)).is_some_and(|before| before != (bytes, flags)) {
                        return Err(wrong("one size of the export", "two"));
                    }
                }
                (REP_INFO, INFO_BLOCK_SIZE) => {
                    sizes = Sizes { minimum: input.u32()?, preferred: input.u32()?, maximum: input.u32()? };
                    input.end()?;
                    check(sizes)?;
                }
                (REP_INFO, _) => {}
                (other, _) => return Err(wrong("information on the export", format!("a reply of type {other}"))),
            }
        }
        let (bytes, flags) = found.ok_or_else(|| wrong("the size of the export", "none"))?;
        if !bytes.is_multiple_of(u64::from(sizes.minimum)) {
            let least = sizes.minimum;
            return Err(wrong(&format!("an export of whole blocks of {least} bytes"), format!("one of {bytes} bytes")));
        }
        Ok((bytes, flags, sizes))
    }

    /// Asks, and takes a refusal for an error.
    fn must(&mut self, option: HandshakeOption, data: &[u8]) -> Result<Vec<(u32, Vec<u8>)>> {
        self.ask(option, data)?.map_err(|(code, why)| {
            let what = match (code & !REP_ERROR, option) {
                (1 | 2, HandshakeOption::StartTls) => "it has no TLS: use the URI without the s, or another server",
                (1, _) => "it is too old for this client: use a newer server",
                (2, _) => "its policy forbids it",
                (4, _) => "it was built without what is needed",
                (5, _) => "it wants TLS: use nbds:// with tls-certificates=DIR",
                (6, _) => "it has no export of this name: qemu-nbd --list, or nbdinfo --list, show what it has",
                (7, _) => "it cannot serve it now",
                _ => "it does not say why",
            };
            let why = if why.is_empty() { String::new() } else { format!(" ({why:.500})") };
            let kind = if code & !REP_ERROR == 7 { ErrorKind::ConnectionRefused } else { ErrorKind::PermissionDenied };
            Error::new(kind, format!("the NBD server refuses {option:?}: {what}{why}"))
        })
    }

    /// Asks, and gathers the replies.
    fn ask(&mut self, option: HandshakeOption, data: &[u8]) -> Result<Answer> {
        let mut message = Vec::with_capacity(16 + data.len());
        message.extend(OPTION_MAGIC.to_be_bytes());
        message.extend((option as u32).to_be_bytes());
        message.extend(count(data.len())?.to_be_bytes());
        message.extend(data);
        self.write(&message)?;
        let mut items = Vec::new();
        loop {
            match self.reply(option)? {
                Reply::Done => return Ok(Ok(items)),
                Reply::Refused { code, why } => return Ok(Err((code, why))),
                Reply::Item { kind, payload } if items.len() < MAX_REPLIES => items.push((kind, payload)),
                Reply::Item { .. } => {
                    return Err(wrong(&format!("at most {MAX_REPLIES} replies to an option"), "more"));
                }
            }
        }
    }

    fn reply(&mut self, option: HandshakeOption) -> Result<Reply> {
        let mut header = [0; 20];
        self.read(&mut header)?;
        let mut input = Input(&header);
        let (magic, to, kind, len) = (input.u64()?, input.u32()?, input.u32()?, input.u32()?);
        if magic != OPTION_REPLY_MAGIC || to != option as u32 {
            return Err(wrong(&format!("a reply to {option:?}"), format!("magic {magic:#018x}, option {to}")));
        }
        if len > MAX_REPLY_BYTES {
            return Err(wrong(&format!("a reply of at most {MAX_REPLY_BYTES} bytes"), format!("one of {len}")));
        }
        let mut payload = vec![0; len as usize];
        self.read(&mut payload)?;
        Ok(match kind {
            REP_ACK if len == 0 => Reply::Done,
            REP_ACK => return Err(wrong("nothing in an acknowledgement", format!("{len} bytes"))),
            code if code & REP_ERROR != 0 => Reply::Refused { code, why: text(&payload) },
            kind => Reply::Item { kind, payload },
        })
    }

    fn read(&mut self, into: &mut [u8]) -> Result<()> {
        self.channel.read_exact(into, Instant::now() + self.patience)
    }

    fn write(&mut self, from: &[u8]) -> Result<()> {
        self.channel.write_all(from, Instant::now() + self.patience)
    }
}

fn check(Sizes { minimum, preferred, maximum }: Sizes) -> Result<()> {
    let sound = minimum.is_power_of_two()
        && minimum <= 64 << 10
        && preferred.is_power_of_two()
        && preferred >= minimum
        && maximum >= minimum
        // "No limit" is all ones, and no multiple of anything.
        && (maximum == u32::MAX || maximum.is_multiple_of(minimum));
    match sound {
        true => Ok(()),
        false => Err(wrong(
            "block sizes as the protocol has them",
            format!("minimum {minimum}, preferred {preferred}, maximum {maximum}"),
        )),
    }
}

fn string(text: &str) -> Result<Vec<u8>> {
    if text.len() > MAX_STRING_BYTES {
        let text = format!("expected a name of at most {MAX_STRING_BYTES} bytes, found {}", text.len());
        return Err(Error::new(ErrorKind::InvalidInput, text));
    }
    let mut out = count(text.len())?.to_be_bytes().to_vec();
    out.extend(text.as_bytes());
    Ok(out)
}

fn count(n: usize) -> Result<u32> {
    u32::try_from(n).map_err(|_| Error::new(ErrorKind::InvalidInput, "an option of more than 4 GiB"))
}

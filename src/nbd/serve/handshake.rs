//! From a connected socket to an export, as the server sees it: fixed newstyle negotiation.

use super::admission::Seat;
use super::wire::{FLAGS, FLAGS_STRUCTURED, Named, breach, decode_contexts, decode_go, info, option_reply};
use super::{Absent, Export, HANDSHAKE, Host};
use crate::nbd::ALLOCATION;
use crate::nbd::channel::Channel;
use crate::nbd::tls;
use crate::nbd::wire::{
    FIXED_NEWSTYLE, HandshakeOption, Input, MAGIC, MAX_STRING_BYTES, NO_ZEROES, OPTION_MAGIC, REP_ACK, REP_ERROR,
    REP_META_CONTEXT, REP_SERVER, Style,
};
use std::io::{Error, ErrorKind, Result};
use std::sync::Arc;
use std::time::Instant;

/// The longest data of an option: a name, and a few contexts.
const MAX_OPTION_BYTES: u32 = 4 * MAX_STRING_BYTES as u32;
/// Options that one client may try.
const MAX_OPTIONS: usize = 256;
/// The number of `base:allocation` in every session.
pub const ALLOCATION_ID: u32 = 1;
/// Zeros behind the answer to `NBD_OPT_EXPORT_NAME`, which nobody wants any more.
const PADDING: usize = 124;

/// What was agreed.
pub struct Agreed {
    /// The export's name.
    pub name: String,
    /// The export.
    pub export: Arc<dyn Export>,
    /// Simple or structured.
    pub style: Style,
    /// Whether block status may be asked for.
    pub status: bool,
}

/// What comes after an option.
enum Step {
    Next,
    Agreed(Agreed),
    /// The client has gone.
    Left,
    Encrypt(tls::Host),
}

/// Errors that a server answers options with.
#[derive(Clone, Copy)]
enum Refusal {
    Unsupported = 1,
    Policy = 2,
    Invalid = 3,
    TlsRequired = 5,
    Unknown = 6,
    /// The protocol's word is that of a server that is about to end; to a client it says the same: not now.
    NotNow = 7,
}

/// Negotiates; `None` where the client only looked.
///
/// # Errors
/// The client broke the protocol, was not believed, or took too long.
pub fn agree(host: &Host, channel: Channel, seat: &mut Seat) -> Result<Option<(Channel, Agreed)>> {
    let until = Instant::now() + HANDSHAKE;
    let mut talk = Talk { host, channel, seat, until, style: Style::Simple, wanted: None, zeroes: true };
    // Where nobody need show who he is, everybody is known.
    if host.tls.is_none() {
        talk.seat()?;
    }
    talk.run()
}

struct Talk<'a> {
    host: &'a Host,
    channel: Channel,
    seat: &'a mut Seat,
    until: Instant,
    style: Style,
    /// The export that block status was asked for.
    wanted: Option<String>,
    /// Whether the client wants the padding.
    zeroes: bool,
}

impl Talk<'_> {
    fn run(mut self) -> Result<Option<(Channel, Agreed)>> {
        let flags = FIXED_NEWSTYLE | NO_ZEROES;
        self.write(&[&MAGIC.to_be_bytes()[..], &OPTION_MAGIC.to_be_bytes(), &flags.to_be_bytes()].concat())?;
        let mut theirs = [0; 4];
        self.read(&mut theirs)?;
        let theirs = Input(&theirs).u32()?;
        if theirs & !u32::from(flags) != 0 {
            return Err(breach("handshake flags that we know", format!("{theirs:#x}")));
        }
        self.zeroes = theirs & u32::from(NO_ZEROES) == 0;
        for _ in 0..MAX_OPTIONS {
            let mut header = [0; 16];
            self.read(&mut header)?;
            let mut input = Input(&header);
            let (magic, number, len) = (input.u64()?, input.u32()?, input.u32()?);
            if magic != OPTION_MAGIC {
                return Err(breach("IHAVEOPT", format!("{magic:#018x}")));
            }
            if len > MAX_OPTION_BYTES {
                return Err(breach(&format!("an option of at most {MAX_OPTION_BYTES} bytes"), len));
            }
            let mut data = vec![0; len as usize];
            self.read(&mut data)?;
            match self.option(number, &data)? {
                Step::Next => {}
                Step::Agreed(agreed) => return Ok(Some((self.channel, agreed))),
                Step::Left => return Ok(None),
                Step::Encrypt(tls) => {
                    self.channel = self.channel.encrypt(|socket| tls.begin(socket), self.until)?;
                    self.seat()?;
                    // Nothing that was said before counts: anybody on the way may have said it.
                    (self.style, self.wanted) = (Style::Simple, None);
                }
            }
        }
        Err(breach(&format!("an export within {MAX_OPTIONS} options"), "none"))
    }

    /// A place among those who have shown who they are.
    fn seat(&mut self) -> Result<()> {
        match self.seat.known() {
            true => Ok(()),
            false => {
                Err(Error::new(ErrorKind::ConnectionRefused, "as many clients as there is room for are here already"))
            }
        }
    }

    /// Answers one option.
    fn option(&mut self, number: u32, data: &[u8]) -> Result<Step> {
        use HandshakeOption as O;
        let option = HandshakeOption::of(number);
        let open = self.host.tls.is_none() || matches!(self.channel, Channel::Tls(_));
        match option {
            Some(O::Abort) => {
                // Whoever leaves may be gone already.
                let _ = self.reply(number, REP_ACK, &[]);
                return Ok(Step::Left);
            }
            Some(O::StartTls) => return self.start_tls(number, data),
            Some(O::ExportName) if !open => return Err(breach("TLS before an export is named", "none")),
            _ if !open => self.refuse(number, Refusal::TlsRequired, "this server wants TLS")?,
            Some(O::ExportName) => return self.export_name(data).map(Step::Agreed),
            Some(O::List) if data.is_empty() => {
                for name in self.host.keeper.names() {
                    let len = u32::try_from(name.len()).unwrap_or(u32::MAX);
                    self.reply(number, REP_SERVER, &[&len.to_be_bytes()[..], name.as_bytes()].concat())?;
                }
                self.reply(number, REP_ACK, &[])?;
            }
            Some(O::StructuredReply) if data.is_empty() => {
                self.style = Style::Structured;
                self.reply(number, REP_ACK, &[])?;
            }
            Some(O::List | O::StructuredReply) => self.refuse(number, Refusal::Invalid, "it takes no data")?,
            Some(O::Info | O::Go) => return self.go(number, option == Some(O::Go), data),
            Some(O::SetMetaContext | O::ListMetaContext) => {
                self.contexts(number, option == Some(O::SetMetaContext), data)?;
            }
            Some(O::ExtendedHeaders) | None => self.refuse(number, Refusal::Unsupported, "")?,
        }
        Ok(Step::Next)
    }

    fn start_tls(&mut self, number: u32, data: &[u8]) -> Result<Step> {
        let Some(tls) = self.host.tls.clone() else {
            self.refuse(number, Refusal::Policy, "this server has no TLS")?;
            return Ok(Step::Next);
        };
        if !data.is_empty() || matches!(self.channel, Channel::Tls(_)) {
            self.refuse(number, Refusal::Invalid, "not here")?;
            return Ok(Step::Next);
        }
        self.reply(number, REP_ACK, &[])?;
        Ok(Step::Encrypt(tls))
    }

    fn find(&self, name: &str) -> std::result::Result<(String, Arc<dyn Export>), Absent> {
        let name = match (name, self.host.keeper.names().as_slice()) {
            // Whoever names none means the only one.
            ("", [only]) => only.clone(),
            _ => name.to_owned(),
        };
        if self.host.accounts.is_mute(&name) {
            return Err(Absent::Mute("its disk does not answer those who have asked before; come again".into()));
        }
        self.host.keeper.open(&name).map(|export| (name, export))
    }

    fn agreed(&self, name: String, export: Arc<dyn Export>, asked_as: &str) -> Agreed {
        let status = self.style == Style::Structured && self.wanted.as_deref() == Some(asked_as);
        Agreed { name, export, style: self.style, status }
    }

    fn flags(&self) -> u16 {
        if self.style == Style::Structured { FLAGS_STRUCTURED } else { FLAGS }
    }

    fn export_name(&mut self, data: &[u8]) -> Result<Agreed> {
        let asked = std::str::from_utf8(data).map_err(|_| breach("a name in UTF-8", "something else"))?;
        // The only way to refuse is to hang up.
        let (name, export) = self
            .find(asked)
            .map_err(|(Absent::Unknown(why) | Absent::Mute(why))| Error::new(ErrorKind::NotFound, why))?;
        let mut answer = [&export.bytes().to_be_bytes()[..], &self.flags().to_be_bytes()].concat();
        if self.zeroes {
            answer.extend([0; PADDING]);
        }
        self.write(&answer)?;
        Ok(self.agreed(name, export, asked))
    }

    fn go(&mut self, number: u32, chosen: bool, data: &[u8]) -> Result<Step> {
        let Ok(Named { export: asked, .. }) = decode_go(data) else {
            self.refuse(number, Refusal::Invalid, "it is not understood")?;
            return Ok(Step::Next);
        };
        match self.find(&asked) {
            Ok((name, export)) => {
                let told = info(number, export.bytes(), self.flags(), export.sizes());
                self.write(&told)?;
                self.reply(number, REP_ACK, &[])?;
                Ok(if chosen { Step::Agreed(self.agreed(name, export, &asked)) } else { Step::Next })
            }
            Err(why) => {
                self.absent(number, &why)?;
                Ok(Step::Next)
            }
        }
    }

    fn contexts(&mut self, number: u32, set: bool, data: &[u8]) -> Result<()> {
        if set {
            // Whatever comes of it, what was set before is not any more.
            self.wanted = None;
        }
        let Ok(Named { export: asked, queries }) = decode_contexts(data) else {
            return self.refuse(number, Refusal::Invalid, "it is not understood");
        };
        if self.style != Style::Structured {
            return self.refuse(number, Refusal::Invalid, "structured replies come first");
        }
        if let Err(why) = self.find(&asked) {
            return self.absent(number, &why);
        }
        let fits = |query: &String| query == ALLOCATION || !set && query == "base:";
        if queries.iter().any(fits) || !set && queries.is_empty() {
            let id = if set { ALLOCATION_ID } else { 0 };
            self.reply(number, REP_META_CONTEXT, &[&id.to_be_bytes()[..], ALLOCATION.as_bytes()].concat())?;
            if set {
                self.wanted = Some(asked);
            }
        }
        self.reply(number, REP_ACK, &[])
    }

    fn absent(&mut self, option: u32, absent: &Absent) -> Result<()> {
        match absent {
            Absent::Unknown(why) => self.refuse(option, Refusal::Unknown, why),
            Absent::Mute(why) => self.refuse(option, Refusal::NotNow, why),
        }
    }

    fn refuse(&mut self, option: u32, why: Refusal, words: &str) -> Result<()> {
        self.reply(option, REP_ERROR | why as u32, words.as_bytes())
    }

    fn reply(&mut self, option: u32, kind: u32, payload: &[u8]) -> Result<()> {
        self.write(&option_reply(option, kind, payload))
    }

    fn read(&mut self, into: &mut [u8]) -> Result<()> {
        self.channel.read_exact(into, self.until)
    }

    fn write(&mut self, from: &[u8]) -> Result<()> {
        self.channel.write_all(from, self.until)
    }
}

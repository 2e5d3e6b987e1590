//! `custody dispatch|receive`: who had the array, when, where, under which box seals. Signed events, chained by digest.
//!
//! [`road`] is the chain on the array. What the data centre does with the content is a chain of its own, [`centre`], to which
//! `report import` and `erase` add. Both are [`chain`]s.

pub mod centre;
pub mod chain;
pub mod road;
#[cfg(test)]
mod tests;

use chain::Place;
pub use road::Particulars;
use road::{BoxSealDifference, EventFacts};

use crate::array::Array;
use crate::array::holder::Lock;
use crate::context::{Context, Outcome, now};
use crate::error::{Error, Result};
use crate::lang::Lang;
use crate::ledger::branch::{KnownSeal, ShipmentState};
use crate::say;
use crate::trust::prepared::expect_prepared;
use crate::trust::{check_may_sign, load_signer, open, read_trust};
use jiff::Timestamp;
use motiongear_manifest::check::chain::{Link, Subject, own_receipt};
use motiongear_manifest::check::{Opened, Terms, split_signer};
use motiongear_manifest::code::spoken_code;
use motiongear_manifest::documents::custody::{CustodyEvent, Event, event_file};
use motiongear_manifest::names::check_text;
use motiongear_manifest::sign::{Namespace, Signer};
use motiongear_manifest::tree::Digest;
use serde::Serialize;
use std::path::PathBuf;
use uuid::Uuid;

/// Which way the array goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Way {
    /// Leaves the branch.
    Dispatch,
    /// Arrives at the data centre.
    Receive,
}

impl Way {
    fn event(self) -> Event {
        match self {
            Way::Dispatch => Event::Dispatched,
            Way::Receive => Event::Received,
        }
    }
}

/// What is wanted.
#[derive(Debug, Clone)]
pub struct Options {
    /// Dispatch or receive.
    pub way: Way,
    /// Where the array is mounted.
    pub array: PathBuf,
    /// The private key that signs.
    pub key: PathBuf,
    /// NAME@SITE, if the key's comment is none.
    pub signer: Option<String>,
    /// Allowed signers, to check seal and chain with.
    pub trust: Option<PathBuf>,
    /// Judge validity of keys at this time.
    pub verify_time: Option<Timestamp>,
    /// What the event says.
    pub particulars: Particulars,
    /// Why the box seals found on arrival may be others than those of the dispatch; it begins the note of the event.
    pub box_seals_differ: Option<String>,
}

/// What would be written.
#[derive(Debug, Clone, Serialize)]
pub struct Plan {
    /// The shipment.
    pub shipment: Uuid,
    /// The seal.
    pub seal: Digest,
    /// For the telephone.
    pub spoken_code: String,
    /// What happens.
    pub event: Event,
    /// Its place in the chain.
    pub number: u32,
    /// Who says so.
    pub signer: String,
    /// Who, where, under which seals.
    pub particulars: Particulars,
}

/// What was written.
#[derive(Debug, Clone, Serialize)]
pub struct Done {
    /// What was planned.
    #[serde(flatten)]
    pub plan: Plan,
    /// Only planned: nothing was written.
    pub dry_run: bool,
    /// An earlier run of the same command recorded it.
    pub recorded_already: bool,
    /// The event's file, relative to `motiongear/`; empty for a dry run.
    pub file: String,
    /// When, by this host's clock.
    pub at: Timestamp,
    /// The chain so far, this event included.
    pub chain: Vec<EventFacts>,
    /// On arrival: box seals that are not those of the dispatch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub box_seals: Option<BoxSealDifference>,
    /// Whether the signers of seal and chain were compared with a trust file.
    pub signers_checked: bool,
    /// What people should know.
    pub notes: Vec<String>,
}

impl Outcome for Done {
    fn summary(&self, lang: Lang) -> String {
        let Plan { number, signer, spoken_code: code, event, .. } = &self.plan;
        let mut lines = vec![match (self.dry_run, event) {
            _ if self.recorded_already => say!(
                lang,
                "Recorded already at {}: seal {code}, event {number} ({}), signed by {signer}",
                "已于 {} 记录：封签 {code}，第 {number} 号交接记录（{}），签名人 {signer}",
                self.at,
                event.word()
            ),
            (true, _) => say!(
                lang,
                "Would sign custody event {number} ({}) of seal {code} as {signer}",
                "将以 {signer} 名义签署封签 {code} 的第 {number} 号交接记录（{}）",
                event.word()
            ),
            (false, Event::Dispatched) => {
                say!(
                    lang,
                    "Dispatched: seal {code}, event {number}, signed by {signer}",
                    "已发运：封签 {code}，第 {number} 号交接记录，签名人 {signer}"
                )
            }
            (false, _) => {
                say!(
                    lang,
                    "Received: seal {code}, event {number}, signed by {signer}",
                    "已签收：封签 {code}，第 {number} 号交接记录，签名人 {signer}"
                )
            }
        }];
        if let Some(difference) = &self.box_seals {
            let (missing, unexpected) = (difference.missing.join(", "), difference.unexpected.join(", "));
            if difference.is_empty() {
                lines.push(say!(lang, "Box seals: the same as at dispatch", "箱封：与发运时一致"));
            }
            if !missing.is_empty() {
                lines.push(say!(
                    lang,
                    "WARNING: box seals put on at dispatch, not found: {missing}",
                    "警告：发运时所加、到达时未见的箱封：{missing}"
                ));
            }
            if !unexpected.is_empty() {
                lines.push(say!(
                    lang,
                    "WARNING: box seals found, not put on at dispatch: {unexpected}",
                    "警告：到达时发现、发运时未加的箱封：{unexpected}"
                ));
            }
        }
        if !self.signers_checked {
            lines.push(say!(lang, "Signers not checked: no --trust was given", "未核对签名人：没有给出 --trust"));
        }
        lines.extend(self.notes.iter().cloned());
        lines.join("\n")
    }
}

/// Signs and adds one event. One that the same command recorded before stands: nothing is added, and all is well.
///
/// # Errors
/// No valid seal or chain, a signer that is not allowed, a dispatch without a good check of the medium since sealing, another
/// event of the same kind in its place, an array that was erased here, or one that cannot be written.
pub fn run(context: &Context, mut options: Options) -> Result<Done> {
    let at = now()?;
    let trust = options.trust.as_deref().map(read_trust).transpose()?;
    let terms = Terms { trust: trust.as_ref(), at: options.verify_time.unwrap_or(at), expect_seal: None };
    let signer_key = load_signer(context, &options.key)?;
    let signer = who(&signer_key, options.signer.as_deref())?;
    check_may_sign(trust.as_ref(), (signer.as_str(), &signer_key), &[Namespace::Custody], terms.at)?;
    note_difference(&mut options)?;
    let array = Array::new(&options.array);
    let _lock = Lock::alone(&array)?;
    let opened = open(&array, trust.as_ref(), None, options.verify_time)?;
    let (shipment, seal) = (opened.seal.shipment, opened.seal_digest);
    if let Some(document) = opened.seal.pins.get("shipment.json") {
        expect_prepared(&context.ledger, shipment, *document)?;
    }
    let (place, kept) = (Place::on_array(&opened), Place::kept(&context.ledger, shipment));
    let chain = road::read(&place, &kept, &subject(&opened), &terms).map_err(|e| array.gone().unwrap_or(e))?;
    // Who signed here is none of the trust file's business: an erasure counts whoever did it.
    let own = Terms { trust: None, ..terms };
    if centre::read(&context.ledger, shipment, &opened.seal.site.name, &own)?.is_erased() {
        return Err(Error::failed(format!("Shipment {shipment}: its array was erased; there is nothing to hand over")));
    }
    let event = options.way.event();
    let known = context.ledger.shipment(shipment)?;
    let recorded = chain.links.last().filter(|link| link.event.event == event);
    if !context.dry_run {
        // Before anything is refused: a check of the medium finds leftovers, and a dispatch needs a check that finds nothing. And
        // an event behind one that the array has lost would be behind a gap.
        road::keep(&kept, &place, &chain)?;
    }
    if options.way == Way::Dispatch && trust.is_some() && !context.dry_run {
        adopt(context, &opened)?;
    }
    if recorded.is_some() && !context.dry_run {
        // The run that wrote it may have been killed before its name was durable (it is now), or before this host had its own copy;
        // and a crash between the event and the ledger must not leave a shipment that could be reopened.
        if event == Event::Dispatched && known.as_ref().is_some_and(|known| known.state != ShipmentState::Moved) {
            context.ledger.set_shipment_state(shipment, ShipmentState::Dispatched)?;
        }
        road::keep(&place, &kept, &chain)?;
    }
    match (options.way, recorded) {
        (_, Some(_)) => {}
        (Way::Dispatch, None) => check_dispatch(context, shipment, seal)?,
        (Way::Receive, None) if chain.last() != Some(Event::Dispatched) => {
            return Err(Error::untrusted(format!(
                "Array {}: expected a dispatch to be recorded, found no custody event at all",
                options.array.display(),
            ))
            .next(
                "ask the sender for the spoken code of the seal; an array that left without a dispatch is not in order",
            ));
        }
        (Way::Receive, None) => {}
    }
    if let Some(link) = recorded {
        same_again(&options, link, &signer, &signer_key)?;
    }
    let (_, site) = split_signer(&signer)?;
    if options.way == Way::Dispatch && site != opened.seal.site.name {
        return Err(Error::untrusted(format!(
            "Signer {signer}: expected one of the shipment's site '{}', found site '{site}'",
            opened.seal.site.name
        ))
        .next("dispatch with the key of a person of that site: --key and --signer NAME@SITE"));
    }
    let dispatched = chain.last_of(Event::Dispatched).filter(|_| options.way == Way::Receive);
    let box_seals = dispatched.map(|link| BoxSealDifference::of(&link.event.box_seals, &options.particulars.box_seals));
    if let (Some(dispatched), Some(difference), None) = (dispatched, &box_seals, recorded) {
        check_receipt(&options, dispatched, difference, (signer.as_str(), &signer_key))?;
    }
    let plan = Plan {
        shipment,
        seal,
        spoken_code: spoken_code(&seal),
        event,
        number: recorded.map_or(chain.next_number(), |link| link.event.number),
        signer,
        particulars: options.particulars,
    };
    let notes = opened.findings.list.iter().filter(|f| trust.is_some() || f.object != "seal.json");
    let mut done = Done {
        dry_run: context.dry_run,
        recorded_already: recorded.is_some(),
        file: recorded.map(|link| array_file(&link.event)).unwrap_or_default(),
        at: recorded.map_or(at, |link| link.event.at),
        chain: chain.facts(),
        box_seals,
        signers_checked: trust.is_some(),
        notes: notes.map(ToString::to_string).chain(chain.notes.iter().cloned()).collect(),
        plan,
    };
    if context.dry_run || done.recorded_already {
        return Ok(done);
    }
    let plan = &done.plan;
    // The ledger first: after a crash in between, a shipment that cannot be reopened is safe, and this verb goes on; the other way
    // round a shipment that is on the road could be reopened. An array that cannot be written leaves all as it was.
    let before = known.filter(|_| options.way == Way::Dispatch).map(|known| known.state);
    if before.is_some() {
        context.ledger.set_shipment_state(shipment, ShipmentState::Dispatched)?;
    }
    let added = road::append(&place, &chain, (shipment, seal), event, at, &plan.signer, &plan.particulars, &signer_key);
    if let (Err(_), Some(state)) = (&added, before) {
        context.ledger.set_shipment_state(shipment, state)?;
    }
    let mut whole = chain;
    whole.links.push(added?);
    done.file = whole.links.last().map(|link| array_file(&link.event)).unwrap_or_default();
    done.chain = whole.facts();
    road::keep(&place, &kept, &whole)?;
    Ok(done)
}

/// What the chain of an array must be about.
pub fn subject(opened: &Opened) -> Subject<'_> {
    Subject { shipment: opened.seal.shipment, seal: Some(opened.seal_digest), site: &opened.seal.site.name }
}

fn array_file(event: &CustodyEvent) -> String {
    event_file(event.number, event.event)
}

/// Puts the reason for other box seals in front of the note, where every reader of the chain finds it.
fn note_difference(options: &mut Options) -> Result<()> {
    let Some(reason) = &options.box_seals_differ else { return Ok(()) };
    let note = &options.particulars.note;
    let more = if note.is_empty() { String::new() } else { format!("; {note}") };
    let note = format!("box seals differ: {reason}{more}");
    let field = || Error::usage("Custody: --box-seals-differ");
    if reason.trim().is_empty() {
        return Err(field().next("give the reason in words; it stands in the report"));
    }
    check_text("Reason", &note, 2000).map_err(|e| field().because(e))?;
    options.particulars.note = note;
    Ok(())
}

/// Refuses a receipt that proves nothing: by the key or site that dispatched, or of a box that somebody opened on the road.
fn check_receipt(
    options: &Options,
    dispatched: &Link<CustodyEvent>,
    difference: &BoxSealDifference,
    (signer, key): (&str, &Signer),
) -> Result<()> {
    if let Some(why) = own_receipt(dispatched, signer, Some(key.fingerprint().as_str())) {
        return Err(Error::untrusted(format!("Receipt of {}: {why}", options.array.display()))
            .next("sign the receipt at the data centre, with a key of a person there: --key and --signer NAME@SITE"));
    }
    match (difference.is_empty(), &options.box_seals_differ) {
        (true, None) | (false, Some(_)) => Ok(()),
        (true, Some(_)) => Err(Error::usage("Box seals: they are the same as at dispatch")
            .next("leave --box-seals-differ out")),
        (false, None) => Err(Error::untrusted(format!(
            "Box seals: expected {}, found {}",
            list(&dispatched.event.box_seals),
            list(&options.particulars.box_seals)
        ))
        .next(
            "compare the numbers once more, photograph the box, telephone the branch; to receive it all the same: --box-seals-differ REASON",
        )),
    }
}

/// Box seals in a sentence.
fn list(seals: &[String]) -> String {
    if seals.is_empty() { "none".to_owned() } else { seals.join(", ") }
}

/// Refuses to take the recorded event for the one that is wanted now, unless the same person says the same again.
fn same_again(options: &Options, link: &Link<CustodyEvent>, signer: &str, key: &Signer) -> Result<()> {
    let mut differences = options.particulars.differences(&link.event);
    if link.event.signer != signer || link.signed_by.as_deref() != Some(key.fingerprint().as_str()) {
        differences.insert(0, "signer");
    }
    if differences.is_empty() {
        return Ok(());
    }
    Err(Error::failed(format!(
        "Array {}: expected to record '{}', found it recorded already at {} by {}, with another {}",
        options.array.display(),
        link.event.event.word(),
        link.event.at,
        link.event.signer,
        differences.join(", ")
    ))
    .next(
        "nothing needs to be done if that event is right: it stands in ARRAY/motiongear/custody, and cannot be changed",
    ))
}

/// The name under which somebody signs: as told, or the key's comment where that has the form NAME@SITE.
///
/// # Errors
/// Neither has the form.
pub fn who(key: &Signer, told: Option<&str>) -> Result<String> {
    let comment = key.public_key().comment().to_owned();
    let name = told.map(str::to_owned).or_else(|| split_signer(&comment).is_ok().then_some(comment));
    let name = name.ok_or_else(|| {
        Error::usage("Signer: expected a name of the form NAME@SITE, found none (the key's comment is no such name)")
            .next("give it with --signer, as in --signer wang@datacentre")
    })?;
    split_signer(&name)?;
    Ok(name)
}

/// Takes the sealed state from the array where this ledger was set back: its seal is signed by somebody whom the trust file allows, and is
/// newer than all that this ledger knows of.
fn adopt(context: &Context, opened: &Opened) -> Result<()> {
    let (ledger, seal) = (&context.ledger, &opened.seal);
    let Some(known) = ledger.shipment(seal.shipment)? else { return Ok(()) };
    let ours = opened.seal.pins.get("shipment.json") == Some(&known.document);
    let newer = ledger.seals(seal.shipment)?.iter().all(|other| other.sealed_at <= seal.sealed_at);
    let open = matches!(known.state, ShipmentState::Seeding | ShipmentState::Sealed);
    if !ours || !newer || !open || ledger.possible_seals(seal.shipment)?.contains(&opened.seal_digest) {
        return Ok(());
    }
    let (signer, sealed_at, supersedes) = (seal.signer.clone(), seal.sealed_at, seal.supersedes);
    ledger.adopt_seal(seal.shipment, &KnownSeal { digest: opened.seal_digest, signer, sealed_at, supersedes })
}

/// A dispatch names the seal that this host made last, after a check of the medium that found nothing.
fn check_dispatch(context: &Context, shipment: Uuid, seal: Digest) -> Result<()> {
    if let Some(known) = context.ledger.shipment(shipment)? {
        // What was added since would be in no seal, and yet be taken for shipped.
        match known.state {
            ShipmentState::Sealed | ShipmentState::Dispatched => {}
            ShipmentState::Seeding => {
                return Err(Error::failed(format!(
                    "Shipment {shipment}: expected a sealed one, found it reopened and not sealed again"
                ))
                .next("end the seed, then motiongear seal ARRAY and motiongear verify ARRAY"));
            }
            ShipmentState::Moved => {
                return Err(Error::failed(format!("Shipment {shipment}: its ledger was moved to another host"))
                    .next("dispatch at that host"));
            }
        }
        let last = context.ledger.seals(shipment)?.pop();
        if last.as_ref().is_none_or(|last| last.digest != seal) {
            return Err(Error::untrusted(format!(
                "Seal on the array: expected {}, which this host made last, found {seal}",
                last.map_or_else(|| "one".to_owned(), |last| last.digest.to_string())
            ))
            .next("an older seal was put back, or another host sealed; do not dispatch this array"));
        }
    }
    if context.ledger.verified_since(shipment, seal)?.is_none() {
        return Err(Error::failed(format!(
            "Shipment {shipment}: expected a successful check of the medium since sealing, found none in this host's ledger"
        ))
        .next("check it first: motiongear verify ARRAY"));
    }
    Ok(())
}

//! Goal: a chain that anybody touched is refused, a crash while adding leaves the old chain or the new, and neither of the two
//! chains stands in the other's way. Method: chains of real signed files in directories.

use super::centre::{self, Deed, Record};
use super::chain::{Chain, Place};
use super::road::{self, Particulars};
use crate::error::{Kind, Result};
use crate::ledger::Ledger;
use jiff::Timestamp;
use motiongear_manifest::allowed::AllowedSigners;
use motiongear_manifest::check::Terms;
use motiongear_manifest::check::chain::Subject;
use motiongear_manifest::documents::Document;
use motiongear_manifest::documents::custody::{CustodyEvent, Event};
use motiongear_manifest::sign::{Namespace, Signer};
use motiongear_manifest::tree::Digest;
use std::path::PathBuf;
use uuid::Uuid;

const SHIPMENT: Uuid = Uuid::from_u128(1);

fn seal() -> Digest {
    Digest::of(b"seal")
}
fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + second).unwrap()
}
fn terms() -> Terms<'static> {
    Terms { trust: None, at: at(0), expect_seal: None }
}
fn subject() -> Subject<'static> {
    Subject { shipment: SHIPMENT, seal: Some(seal()), site: "nanxi" }
}
fn signer(name: &str) -> Signer {
    Signer::generate_ed25519(name).unwrap()
}

/// A host, with its ledger and a chain.
struct Host {
    dir: tempfile::TempDir,
    ledger: Ledger,
    place: Place,
}

impl Host {
    fn new() -> Host {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(dir.path()).unwrap();
        Host { place: Place::kept(&ledger, SHIPMENT), ledger, dir }
    }
    /// Of two events, and the key that signed the first.
    fn with_two() -> (Host, Signer) {
        let (host, key, _) = Host::with_both();
        (host, key)
    }
    /// Of two events, and the keys that signed them.
    fn with_both() -> (Host, Signer, Signer) {
        let (host, key, receiver) = (Host::new(), signer("li@nanxi"), signer("wang@centre"));
        host.add(Event::Dispatched, 0, &key).unwrap();
        host.add(Event::Received, 60, &receiver).unwrap();
        (host, key, receiver)
    }
    fn path(&self, name: &str) -> PathBuf {
        self.place.dir().join(name)
    }
    fn read(&self) -> Result<Chain<CustodyEvent>> {
        self.place.read(&subject(), &terms())
    }
    fn add(&self, event: Event, second: i64, key: &Signer) -> Result<Chain<CustodyEvent>> {
        let particulars =
            Particulars { person: "张师傅".into(), box_seals: vec!["A1".into()], ..Particulars::default() };
        let of = (SHIPMENT, seal());
        // Who dispatched cannot receive: unless `key` is the receiver's own, another one stands in.
        let receiver = signer("wang@centre");
        let own = key.public_key().comment() == "wang@centre";
        let (name, key) = match event {
            Event::Received => ("wang@centre", if own { key } else { &receiver }),
            _ => ("li@nanxi", key),
        };
        road::append(&self.place, &self.read()?, of, event, at(second), name, &particulars, key)?;
        self.read()
    }
    fn centre(&self) -> Result<Chain<centre::CentreEvent>> {
        centre::read(&self.ledger, SHIPMENT, "nanxi", &terms())
    }
    fn deed(&self, event: Deed, seal: Digest, key: &Signer) -> Result<Chain<centre::CentreEvent>> {
        let record =
            Record { shipment: SHIPMENT, seal, event, at: at(100), signer: "wang@centre".into(), note: String::new() };
        centre::append(&self.ledger, &self.centre()?, &self.read()?, record, key)?;
        self.centre()
    }
}

#[test]
fn events_chain_and_read_back() {
    let host = Host::new();
    assert!(host.read().unwrap().links.is_empty());
    let key = signer("li@nanxi");
    host.add(Event::Dispatched, 0, &key).unwrap();
    host.add(Event::Received, 60, &key).unwrap();
    let chain = host.add(Event::Dispatched, 120, &key).unwrap();
    assert_eq!((chain.links.len(), chain.last()), (3, Some(Event::Dispatched)));
    assert!(chain.notes.is_empty(), "{:?}", chain.notes);
    assert_eq!(chain.links[1].event.previous, Some(chain.links[0].digests.clone()));
    assert_eq!(chain.links[0].event.person, "张师傅");
    // A clock that goes back is said.
    let chain = host.add(Event::Received, 90, &key).unwrap();
    assert!(chain.notes[0].contains("clocks of two hosts disagree"), "{:?}", chain.notes);
}

#[test]
fn what_cannot_follow_is_refused() {
    let host = Host::new();
    let key = signer("li@nanxi");
    assert!(host.add(Event::Received, 0, &key).is_err());
    host.add(Event::Dispatched, 0, &key).unwrap();
    assert!(host.add(Event::Dispatched, 1, &key).is_err());
    host.add(Event::Received, 2, &key).unwrap();
    assert!(host.add(Event::Received, 3, &key).is_err());
    assert_eq!(host.read().unwrap().links.len(), 2);
}

/// Whoever has a valid key can write whatever document; a reader believes no order but one.
#[test]
fn an_order_that_somebody_signed_by_hand_is_not_trusted() {
    let (host, key) = Host::with_two();
    let good = host.read().unwrap().links.remove(0).event;
    for name in std::fs::read_dir(host.place.dir()).unwrap() {
        std::fs::remove_file(name.unwrap().path()).unwrap();
    }
    let received = CustodyEvent { event: Event::Received, ..good };
    assert!(received.to_bytes().is_err(), "no writer of ours does it");
    let mut bytes = serde_json::to_vec_pretty(&received).unwrap();
    bytes.push(b'\n');
    std::fs::write(host.path("0001-received.json"), &bytes).unwrap();
    std::fs::write(host.path("0001-received.json.sig"), key.sign(&bytes, Namespace::Custody).unwrap()).unwrap();
    let error = host.read().unwrap_err();
    assert_eq!(error.kind, Kind::Untrusted);
    assert!(error.message.contains("expected 'dispatched' as number 1"), "{error}");
}

#[test]
fn the_centres_chain_and_the_arrays_do_not_hinder_each_other() {
    let (host, other) = (Host::new(), Host::new());
    let key = signer("li@nanxi");
    // Imported before anything is known of custody, then dispatched and received elsewhere, then here.
    let centre = host.deed(Deed::Imported, seal(), &key).unwrap();
    assert_eq!((centre.links.len(), centre.links[0].event.custody.clone()), (1, None));
    other.add(Event::Dispatched, 0, &key).unwrap();
    let chain = other.add(Event::Received, 60, &key).unwrap();
    let joined = road::read(&other.place, &host.place, &subject(), &terms()).unwrap();
    road::keep(&other.place, &host.place, &joined).unwrap();
    assert_eq!((host.read().unwrap(), joined.links.len()), (chain.clone(), 2));
    let centre = host.deed(Deed::Erased, seal(), &key).unwrap();
    assert_eq!(centre.links[1].event.custody, chain.predecessor());
    assert_eq!(centre.links[1].event.previous, Some(centre.links[0].digests.clone()));
    centre.check_known(&chain).unwrap();
    let facts = centre.facts(&host.ledger, &chain);
    assert_eq!((facts[0].known_custody, facts[1].known_custody), (None, Some(2)));
    // Nothing follows an erasure, not even what somebody signed.
    assert!(centre.is_erased() && centre.is_imported(seal()));
    assert!(host.deed(Deed::Imported, seal(), &key).is_err());
    let by_hand = centre::CentreEvent {
        event: Deed::Imported,
        number: 3,
        previous: centre.predecessor(),
        ..centre.links[1].event.clone()
    };
    Place::centre(&host.ledger, SHIPMENT).append(by_hand, &key).unwrap();
    assert!(host.centre().unwrap_err().message.contains("nothing after the erasure"));
}

#[test]
fn an_array_whose_chain_was_rewritten_is_betrayed_by_what_was_known_at_its_import() {
    let (host, key) = Host::with_two();
    let centre = host.deed(Deed::Imported, seal(), &key).unwrap();
    centre.check_known(&host.read().unwrap()).unwrap();
    let (other, _) = Host::with_two();
    assert_eq!(centre.check_known(&other.read().unwrap()).unwrap_err().kind, Kind::Untrusted);
}

#[test]
fn the_centres_chain_is_of_one_shipment_and_as_many_seals_as_it_imported() {
    let host = Host::new();
    let key = signer("li@nanxi");
    let next = Digest::of(b"the next seal");
    host.deed(Deed::Imported, seal(), &key).unwrap();
    assert!(!host.centre().unwrap().is_imported(next));
    let chain = host.deed(Deed::Imported, next, &key).unwrap();
    assert!(chain.is_imported(seal()) && chain.is_imported(next));
    // A document of the other chain has no place in it, nor has one of another shipment.
    let path = host.dir.path().join("custody").join(SHIPMENT.to_string()).join("centre/0001-imported.json");
    let good = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, good.replace(&SHIPMENT.to_string(), &Uuid::from_u128(2).to_string())).unwrap();
    assert_eq!(host.centre().unwrap_err().kind, Kind::Untrusted);
    host.add(Event::Dispatched, 0, &key).unwrap();
    for ending in ["json", "json.sig"] {
        std::fs::copy(host.path(&format!("0001-dispatched.{ending}")), path.with_extension(ending)).unwrap();
    }
    assert_eq!(host.centre().unwrap_err().kind, Kind::Untrusted);
}

#[test]
fn every_flipped_byte_is_noticed() {
    let (host, _) = Host::with_two();
    for name in ["0001-dispatched.json", "0001-dispatched.json.sig", "0002-received.json", "0002-received.json.sig"] {
        let path = host.path(name);
        let good = std::fs::read(&path).unwrap();
        for i in (0..good.len()).step_by(7) {
            let mut bad = good.clone();
            bad[i] ^= 1;
            std::fs::write(&path, &bad).unwrap();
            let error = host.read().map(|chain| format!("{name} byte {i}: {chain:?}"));
            assert!(error.is_err(), "{}", error.unwrap());
        }
        std::fs::write(&path, &good).unwrap();
    }
    host.read().unwrap();
}

#[test]
fn removed_exchanged_and_foreign_events_are_noticed() {
    let (host, key) = Host::with_two();
    let path = |name: &str| host.path(name);
    // The first event's signature is gone.
    let signature = std::fs::read(path("0001-dispatched.json.sig")).unwrap();
    std::fs::remove_file(path("0001-dispatched.json.sig")).unwrap();
    assert_eq!(host.read().unwrap_err().kind, Kind::Untrusted);
    // A signature of the right key over the right bytes, but in another namespace.
    let document = std::fs::read(path("0001-dispatched.json")).unwrap();
    std::fs::write(path("0001-dispatched.json.sig"), key.sign(&document, Namespace::Seal).unwrap()).unwrap();
    assert!(host.read().unwrap_err().message.contains("namespace"));
    // Signed again by somebody else: the second event names the digest of the first signature.
    std::fs::write(path("0001-dispatched.json.sig"), signer("x@y").sign(&document, Namespace::Custody).unwrap())
        .unwrap();
    assert!(host.read().unwrap_err().message.contains("predecessor"));
    std::fs::write(path("0001-dispatched.json.sig"), signature).unwrap();
    host.read().unwrap();
    // Of another seal or shipment.
    let refused = |subject: &Subject, why: &str| {
        let error = host.place.read::<CustodyEvent>(subject, &terms()).unwrap_err();
        assert!(error.kind == Kind::Untrusted && error.message.contains(why), "{error}");
    };
    refused(&Subject { seal: Some(Digest::of(b"other")), ..subject() }, "seal");
    refused(&Subject { shipment: Uuid::from_u128(2), ..subject() }, "shipment");
    refused(&Subject { site: "beihe", ..subject() }, "expected a signer of site 'beihe'");
    // Two events of one number, the second signed or not.
    std::fs::write(path("0001-received.json"), b"{}").unwrap();
    assert!(host.read().unwrap_err().message.contains("second event number 1"));
    std::fs::remove_file(path("0001-received.json")).unwrap();
    for ending in ["", ".sig"] {
        std::fs::copy(path(&format!("0002-received.json{ending}")), path(&format!("0002-dispatched.json{ending}")))
            .unwrap();
    }
    assert!(host.read().unwrap_err().message.contains("second event number 2"));
    // The first one taken out: what follows was not there alone.
    for name in ["0001-dispatched.json", "0001-dispatched.json.sig", "0002-dispatched.json", "0002-dispatched.json.sig"]
    {
        std::fs::remove_file(path(name)).unwrap();
    }
    assert!(host.read().unwrap_err().message.contains("an event before it is missing"));
}

#[test]
fn only_allowed_signers_count() {
    let (host, key, receiver) = Host::with_both();
    let [public, receivers] = [&key, &receiver].map(|key| key.public_key().to_openssh().unwrap());
    let check = |line: String| {
        let trust = AllowedSigners::parse(&format!("{line}\nwang@centre {receivers}")).unwrap();
        host.place.read::<CustodyEvent>(&subject(), &Terms { trust: Some(&trust), ..terms() })
    };
    assert!(check(format!("li@nanxi {public}")).unwrap().signers_checked);
    assert!(!host.read().unwrap().signers_checked);
    for line in ["zhao@nanxi", "li@nanxi namespaces=\"motiongear-seal\"", "li@nanxi valid-before=\"20200101\""] {
        assert_eq!(check(format!("{line} {public}")).unwrap_err().kind, Kind::Untrusted, "{line}");
    }
}

#[test]
fn the_leftover_of_a_crash_is_not_believed_and_gives_way() {
    let host = Host::new();
    let key = signer("li@nanxi");
    host.add(Event::Dispatched, 0, &key).unwrap();
    std::fs::write(host.path("0002-received.json"), b"half an event").unwrap();
    std::fs::write(host.path(".123-0.tmp"), b"half a file").unwrap();
    let chain = host.read().unwrap();
    assert_eq!((chain.links.len(), chain.notes.len()), (1, 2));
    let chain = host.add(Event::Received, 1, &key).unwrap();
    assert_eq!((chain.links.len(), chain.notes.len()), (2, 0), "{:?}", chain.notes);
}

#[test]
fn names_from_a_hostile_directory_are_bounded_and_escaped_and_no_link_is_followed() {
    let (host, _) = Host::with_two();
    for number in 0..200 {
        std::fs::write(host.path(&format!("odd \u{1b}[31m{number}")), b"").unwrap();
    }
    let notes = host.read().unwrap().notes;
    assert!(notes.len() < 30 && notes.iter().all(|note| !note.contains('\u{1b}')), "{notes:?}");
    assert!(notes.last().unwrap().contains("180 more"), "{notes:?}");
    // A link in place of an event, though to the same bytes; and one in place of the directory.
    let (event, elsewhere) = (host.path("0002-received.json"), host.dir.path().join("elsewhere"));
    std::fs::rename(&event, &elsewhere).unwrap();
    std::os::unix::fs::symlink(&elsewhere, &event).unwrap();
    assert_eq!(host.read().unwrap_err().kind, Kind::Untrusted);
    std::fs::rename(&elsewhere, &event).unwrap();
    host.read().unwrap();
    std::fs::rename(host.place.dir(), &elsewhere).unwrap();
    std::os::unix::fs::symlink(&elsewhere, host.place.dir()).unwrap();
    assert!(host.read().is_err());
    std::fs::remove_file(host.place.dir()).unwrap();
    std::fs::rename(&elsewhere, host.place.dir()).unwrap();
    for number in 200..10_000 {
        std::fs::write(host.path(&format!("{number}")), b"").unwrap();
    }
    let error = host.read().unwrap_err();
    assert!(error.kind == Kind::Untrusted && error.message.contains("more than 10000"), "{error}");
}

#[test]
fn the_kept_copy_continues_the_arrays_chain_and_betrays_changes() {
    let ((array, _), kept) = (Host::with_two(), Host::new());
    road::keep(&array.place, &kept.place, &array.read().unwrap()).unwrap();
    let read = || road::read(&array.place, &kept.place, &subject(), &terms());
    assert_eq!((read().unwrap().links.len(), read().unwrap().notes.len()), (2, 0));
    // The array's chain was cut: said; and put back before anything follows.
    for name in ["0002-received.json", "0002-received.json.sig"] {
        std::fs::remove_file(array.path(name)).unwrap();
    }
    let whole = read().unwrap();
    assert!(whole.links.len() == 2 && whole.notes[0].contains("0002-received.json"), "{:?}", whole.notes);
    road::keep(&kept.place, &array.place, &whole).unwrap();
    assert_eq!(array.read().unwrap(), kept.read().unwrap());
    // What changes between the check and the copy is not kept.
    let fresh = Host::new();
    std::fs::write(array.path("0001-dispatched.json"), b"{}").unwrap();
    assert_eq!(road::keep(&array.place, &fresh.place, &whole).unwrap_err().kind, Kind::Untrusted);
    assert!(fresh.read().unwrap().links.is_empty());
    // It was rewritten by somebody with a valid key: refused.
    let (other, _) = Host::with_two();
    let error = road::read(&other.place, &kept.place, &subject(), &terms()).unwrap_err();
    assert!(error.kind == Kind::Untrusted && error.message.contains("not the one"), "{error}");
}

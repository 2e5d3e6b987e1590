//! Goal: a chain that anybody touched is refused, and a crash while adding leaves the old chain or the new.

use super::chain::{Chain, Particulars, append, join, keep, read_chain};
use crate::error::Kind;
use jiff::Timestamp;
use motiongear_manifest::allowed::AllowedSigners;
use motiongear_manifest::check::Terms;
use motiongear_manifest::documents::custody::Event;
use motiongear_manifest::sign::{Namespace, Signer};
use motiongear_manifest::tree::Digest;
use std::path::Path;
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
fn signer(name: &str) -> Signer {
    Signer::generate_ed25519(name).unwrap()
}
fn read(dir: &Path) -> crate::error::Result<Chain> {
    read_chain(dir, SHIPMENT, seal(), &terms())
}
fn add(dir: &Path, event: Event, second: i64, key: &Signer) -> crate::error::Result<Chain> {
    let chain = read(dir)?;
    let particulars =
        Particulars { person: "张师傅".into(), box_seals: vec!["A1".into()], ..Particulars::default() };
    append(dir, &chain, (SHIPMENT, seal()), event, at(second), "li@nanxi", &particulars, key)?;
    read(dir)
}

/// Two events, and the key that signed them.
fn two(dir: &Path) -> Signer {
    let key = signer("li@nanxi");
    add(dir, Event::Dispatched, 0, &key).unwrap();
    add(dir, Event::Received, 60, &key).unwrap();
    key
}

#[test]
fn events_chain_and_read_back() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(read(&dir.path().join("none")).unwrap(), Chain::default());
    let key = two(dir.path());
    let chain = add(dir.path(), Event::Imported, 120, &key).unwrap();
    assert_eq!(chain.links.len(), 3);
    assert_eq!(chain.last(), Some(Event::Imported));
    assert!(chain.notes.is_empty(), "{:?}", chain.notes);
    assert_eq!(chain.links[1].event.previous, Some(chain.links[0].digests.clone()));
    assert_eq!(chain.links[0].event.person, "张师傅");
}

#[test]
fn what_cannot_follow_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let key = signer("li@nanxi");
    assert!(add(dir.path(), Event::Received, 0, &key).is_err());
    add(dir.path(), Event::Dispatched, 0, &key).unwrap();
    assert!(add(dir.path(), Event::Dispatched, 1, &key).is_err());
    add(dir.path(), Event::Received, 2, &key).unwrap();
    assert!(add(dir.path(), Event::Received, 3, &key).is_err());
    add(dir.path(), Event::Erased, 4, &key).unwrap();
    for event in [Event::Dispatched, Event::Received, Event::Imported, Event::Erased] {
        assert!(add(dir.path(), event, 5, &key).is_err());
    }
}

#[test]
fn every_flipped_byte_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    two(dir.path());
    for name in ["0001-dispatched.json", "0001-dispatched.json.sig", "0002-received.json", "0002-received.json.sig"] {
        let path = dir.path().join(name);
        let good = std::fs::read(&path).unwrap();
        for i in (0..good.len()).step_by(7) {
            let mut bad = good.clone();
            bad[i] ^= 1;
            std::fs::write(&path, &bad).unwrap();
            let error = read(dir.path()).map(|chain| format!("{name} byte {i}: {chain:?}"));
            assert!(error.is_err(), "{}", error.unwrap());
        }
        std::fs::write(&path, &good).unwrap();
    }
    read(dir.path()).unwrap();
}

#[test]
fn removed_exchanged_and_foreign_events_are_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let key = two(dir.path());
    // The first event's signature is gone.
    let signature = std::fs::read(path("0001-dispatched.json.sig")).unwrap();
    std::fs::remove_file(path("0001-dispatched.json.sig")).unwrap();
    assert_eq!(read(dir.path()).unwrap_err().kind, Kind::Untrusted);
    // A signature of the right key over the right bytes, but in another namespace.
    let document = std::fs::read(path("0001-dispatched.json")).unwrap();
    std::fs::write(path("0001-dispatched.json.sig"), key.sign(&document, Namespace::Seal).unwrap()).unwrap();
    assert!(read(dir.path()).unwrap_err().message.contains("namespace"));
    // Signed again by somebody else: the second event names the digest of the first signature.
    std::fs::write(path("0001-dispatched.json.sig"), signer("x@y").sign(&document, Namespace::Custody).unwrap())
        .unwrap();
    assert!(read(dir.path()).unwrap_err().message.contains("predecessor"));
    std::fs::write(path("0001-dispatched.json.sig"), signature).unwrap();
    read(dir.path()).unwrap();
    // Of another seal or shipment.
    assert!(read_chain(dir.path(), SHIPMENT, Digest::of(b"other"), &terms()).unwrap_err().message.contains("seal"));
    assert!(read_chain(dir.path(), Uuid::from_u128(2), seal(), &terms()).is_err());
    // Two events of one number.
    for ending in ["", ".sig"] {
        std::fs::copy(path(&format!("0002-received.json{ending}")), path(&format!("0002-dispatched.json{ending}")))
            .unwrap();
    }
    assert!(read(dir.path()).unwrap_err().message.contains("one event"));
    // The first one taken out: what follows was not there alone.
    for name in ["0001-dispatched.json", "0001-dispatched.json.sig", "0002-dispatched.json", "0002-dispatched.json.sig"]
    {
        std::fs::remove_file(path(name)).unwrap();
    }
    assert!(read(dir.path()).unwrap_err().message.contains("there are later ones"));
}

#[test]
fn only_allowed_signers_count() {
    let dir = tempfile::tempdir().unwrap();
    let key = two(dir.path());
    let public = key.public_key().to_openssh().unwrap();
    let check = |text: String| {
        let trust = AllowedSigners::parse(&text).unwrap();
        read_chain(dir.path(), SHIPMENT, seal(), &Terms { trust: Some(&trust), at: at(0), expect_seal: None })
    };
    assert!(check(format!("li@nanxi {public}")).unwrap().links.iter().all(|link| link.signer_checked));
    for line in ["zhao@nanxi", "li@nanxi namespaces=\"motiongear-seal\"", "li@nanxi valid-before=\"20200101\""] {
        assert_eq!(check(format!("{line} {public}")).unwrap_err().kind, Kind::Untrusted, "{line}");
    }
}

#[test]
fn the_leftover_of_a_crash_is_not_believed_and_gives_way() {
    let dir = tempfile::tempdir().unwrap();
    let key = signer("li@nanxi");
    add(dir.path(), Event::Dispatched, 0, &key).unwrap();
    std::fs::write(dir.path().join("0002-received.json"), b"half an event").unwrap();
    std::fs::write(dir.path().join(".123-0.tmp"), b"half a file").unwrap();
    let chain = read(dir.path()).unwrap();
    assert_eq!((chain.links.len(), chain.notes.len()), (1, 2));
    let chain = add(dir.path(), Event::Received, 1, &key).unwrap();
    assert_eq!((chain.links.len(), chain.notes.len()), (2, 0), "{:?}", chain.notes);
}

#[test]
fn the_kept_copy_continues_the_arrays_chain_and_betrays_changes() {
    let (array, kept) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let key = two(array.path());
    keep(array.path(), kept.path(), &read(array.path()).unwrap()).unwrap();
    add(kept.path(), Event::Imported, 120, &key).unwrap();
    let whole = join(read(array.path()).unwrap(), read(kept.path()).unwrap()).unwrap();
    assert_eq!((whole.links.len(), whole.notes.len()), (3, 0));
    // The array's chain was cut: said.
    for name in ["0002-received.json", "0002-received.json.sig"] {
        std::fs::remove_file(array.path().join(name)).unwrap();
    }
    let whole = join(read(array.path()).unwrap(), read(kept.path()).unwrap()).unwrap();
    assert!(whole.notes[0].contains("0002-received.json"), "{:?}", whole.notes);
    // It was rewritten by somebody with a valid key: refused.
    let other = tempfile::tempdir().unwrap();
    two(other.path());
    assert!(join(read(other.path()).unwrap(), read(kept.path()).unwrap()).is_err());
}

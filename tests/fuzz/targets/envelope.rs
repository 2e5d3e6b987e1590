//! Key envelopes and other age files, and the texts of age keys. Edits of a valid file end at age's own authentication; behind
//! it lies the plaintext, so that is given directly too and encrypted here.

use super::{Input, Verdict};
use motiongear_manifest::envelope::{
    EnvelopeMeta, Identity, Recipient, decrypt_stream, encrypt_stream, unwrap_key, wrap_key,
};
use std::sync::LazyLock;
use uuid::Uuid;

/// Made with stock `age`, to the identity of the golden fixtures.
const VALID: &[u8] = include_bytes!("valid/envelope.age");
const IDENTITY: &[u8] = include_bytes!("../../../fixtures/format/age-identity.txt");
const PLAINTEXT: &str = concat!(
    r#"{"format":1,"shipment":"00000000-0000-4000-8000-00000000abcd","process":1,"suite":"aes-256-gcm","#,
    r#""key":"0707070707070707070707070707070707070707070707070707070707070707"}"#,
    "\n"
);

static IDENTITIES: LazyLock<Vec<Identity>> = LazyLock::new(|| Identity::parse_file(IDENTITY).unwrap());

fn meta() -> EnvelopeMeta {
    EnvelopeMeta::new(Uuid::from_u128(0x4000_8000_0000_0000_abcd), 1)
}

pub fn run(data: &[u8]) -> Verdict {
    let mut input = Input::new(data);
    match input.u8() % 6 {
        0 => {
            let mut file = VALID.to_vec();
            input.edit(&mut file, 64);
            let key = unwrap_key(&file, &IDENTITIES, &meta());
            assert!(key.is_err() || file == VALID, "an envelope was changed, and nobody noticed");
            let mut plain = Vec::new();
            let sums = decrypt_stream(file.as_slice(), &mut plain, &IDENTITIES);
            assert!(sums.is_err() || (file == VALID && plain == PLAINTEXT.as_bytes()));
            Verdict::from(&key)
        }
        1 => {
            let mut file = input.rest().to_vec();
            // A version line, so that the header is read at all.
            file.splice(0..0, *b"age-encryption.org/v1\n");
            Verdict::from(&unwrap_key(&file, &IDENTITIES, &meta()))
        }
        2 => plaintext(input.rest()),
        3 => {
            let mut text = PLAINTEXT.as_bytes().to_vec();
            input.edit(&mut text, 8);
            plaintext(&text)
        }
        4 => {
            let identities = Identity::parse_file(input.rest());
            if let Ok(identities) = &identities {
                let written = identities[0].to_file("today");
                assert_eq!(Identity::parse_file(written.as_bytes()).unwrap()[0].recipient(), identities[0].recipient());
            }
            Verdict::from(&identities)
        }
        _ => {
            let text = String::from_utf8_lossy(input.rest()).into_owned();
            let recipient = text.parse::<Recipient>();
            if let Ok(recipient) = &recipient {
                // Recipients are compared as text in signed documents.
                assert_eq!(recipient.to_string(), text.trim());
            }
            Verdict::from(&recipient)
        }
    }
}

fn plaintext(text: &[u8]) -> Verdict {
    let recipient = IDENTITIES[0].recipient();
    let mut file = Vec::new();
    encrypt_stream(text, &mut file, &[recipient]).unwrap();
    let key = unwrap_key(&file, &IDENTITIES, &meta());
    if let Ok(key) = &key {
        let mut written = Vec::new();
        let again = wrap_key(key, &meta(), &[IDENTITIES[0].recipient()]).unwrap();
        decrypt_stream(again.as_slice(), &mut written, &IDENTITIES).unwrap();
        assert_eq!(String::from_utf8_lossy(text), String::from_utf8_lossy(&written), "one spelling only");
    }
    Verdict::from(&key)
}

pub fn seeds() -> Vec<Vec<u8>> {
    let with = |kind: u8, rest: &[u8]| [&[kind], rest].concat();
    let header = VALID.splitn(2, |byte| *byte == b'\n').nth(1).unwrap();
    let list = r#"[1,"00000000-0000-4000-8000-00000000abcd",1,"aes-256-gcm","0707070707070707070707070707070707070707070707070707070707070707"]"#;
    let text = |from: &str, to: &str| with(2, PLAINTEXT.replace(from, to).as_bytes());
    vec![
        vec![0],
        vec![0, 0, 60, 0, 0, 0, b'x'],
        vec![0, 5, 200, 0, 0],
        with(1, header),
        with(1, b"-> scrypt AAAAAAAAAAAAAAAAAAAAAA 30\nAAAA\n--- AAAA\n"),
        with(2, PLAINTEXT.as_bytes()),
        with(2, list.as_bytes()),
        text(":1,", ": 1,"),
        text("abcd", "ABCD"),
        text("0707", "070g"),
        text("\n", ""),
        text("\"format\":1,", "\"format\":1,\"format\":1,"),
        vec![3],
        with(4, IDENTITY),
        with(5, IDENTITIES[0].recipient().to_string().as_bytes()),
        with(5, IDENTITIES[0].recipient().to_string().to_uppercase().as_bytes()),
    ]
}

//! What travels over the control socket of a running job: requests, answers and limits as typed.

use super::{Input, Verdict};
use motiongear::job::{Request, Response, parse_limits};

pub fn run(data: &[u8]) -> Verdict {
    let mut input = Input::new(data);
    match input.u8() % 3 {
        0 => {
            let request = serde_json::from_slice::<Request>(input.rest());
            if let Ok(request) = &request {
                let line = serde_json::to_string(request).unwrap();
                assert!(!line.contains('\n'), "one line");
                assert_eq!(&serde_json::from_str::<Request>(&line).unwrap(), request);
                if let Request::Limit { read, cpu } = request {
                    return limits(read.as_deref(), cpu.as_deref());
                }
            }
            Verdict::from(&request)
        }
        1 => {
            let response = serde_json::from_slice::<Response>(input.rest());
            if let Ok(response) = &response {
                let line = serde_json::to_string(response).unwrap();
                assert_eq!(&serde_json::from_str::<Response>(&line).unwrap(), response);
            }
            Verdict::from(&response)
        }
        _ => {
            let cut = usize::from(input.u8());
            let (read, cpu) = (input.take(cut), input.rest());
            limits(Some(&String::from_utf8_lossy(read)), Some(&String::from_utf8_lossy(cpu)))
        }
    }
}

fn limits(read: Option<&str>, cpu: Option<&str>) -> Verdict {
    let change = parse_limits(read, cpu);
    if let Ok(change) = &change {
        assert!(change.cpu_percent.flatten().is_none_or(|cpu| (1..=100).contains(&cpu)));
        assert_ne!(change.read_bytes_per_second.flatten(), Some(0));
    }
    Verdict::from(&change)
}

pub fn seeds() -> Vec<Vec<u8>> {
    let with = |kind: u8, text: &str| [&[kind], text.as_bytes()].concat();
    vec![
        with(0, r#"{"request":"status"}"#),
        with(0, r#"{"request":"limit","read":"80MiB","cpu":"30%"}"#),
        with(0, r#"{"request":"limit","read":"off"}"#),
        with(0, r#"{"request":"stop","more":1}"#),
        with(1, r#"{"error":"no"}"#),
        with(
            1,
            r#"{"job":{"pid":7,"verb":"seed","subject":"/mnt","started_at":"2026-11-20T08:30:00Z","throttle":null,"progress":null,"silent":null}}"#,
        ),
        with(2, "\u{6}1.5GiB100"),
        with(2, "\u{8}1e15Mbit7 %"),
    ]
}

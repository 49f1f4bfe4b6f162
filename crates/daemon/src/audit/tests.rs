use std::os::unix::fs::PermissionsExt;

use understudy_model::Timestamp;

use super::*;
use crate::clock::ManualClock;

struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("audit.log")
    }

    fn open(&self) -> (Audit, Summary) {
        Audit::open(&self.path(), Arc::new(ManualClock::new(Timestamp(1_763_820_185_120)))).unwrap()
    }
}

fn act(object: &str) -> Act {
    Act { by: "uid 0".into(), act: "peer-remove", object: object.into(), detail: String::new() }
}

async fn filled(place: &Place) -> Vec<u8> {
    let (audit, _) = place.open();
    for object in ["a", "b \"quoted\"\nand a second line", "c"] {
        audit.begin(act(object)).await.unwrap().done().await;
    }
    std::fs::read(place.path()).unwrap()
}

#[tokio::test]
async fn an_act_stands_in_the_log_before_it_is_carried_out() {
    let place = Place::new();
    let (audit, _) = place.open();
    let begun = audit.begin(act("x")).await.unwrap();
    let text = std::fs::read_to_string(place.path()).unwrap();
    assert!(text.contains("\"act\":\"peer-remove\",\"object\":\"x\""), "{text}");
    assert!(text.contains("\"phase\":\"begun\"") && text.contains("2025-11-22T14:03:05.12Z"), "{text}");
    begun.refused(&Refusal::new(ReturnCode::InvalidState, "no")).await;
    let text = std::fs::read_to_string(place.path()).unwrap();
    assert!(text.ends_with("}\n") && text.contains("\"of\":1,\"outcome\":\"refused: no\""), "{text}");
}

#[tokio::test]
async fn the_chain_goes_on_over_restarts_and_one_line_is_one_act() {
    let place = Place::new();
    let content = filled(&place).await;
    assert_eq!(content.iter().filter(|b| **b == b'\n').count(), 6);
    let (audit, summary) = place.open();
    assert_eq!((summary.lines, &summary.fault), (6, &None));
    audit.note(act("d"), "seen").await;
    let summary = verify(&place.path()).unwrap();
    assert_eq!((summary.lines, summary.fault), (7, None));
    assert_eq!(std::fs::metadata(place.path()).unwrap().permissions().mode() & 0o777, 0o600);
}

#[tokio::test]
async fn any_altered_byte_is_found() {
    let place = Place::new();
    let content = filled(&place).await;
    for at in (0..content.len()).step_by(7) {
        let mut altered = content.clone();
        altered[at] ^= 1;
        std::fs::write(place.path(), &altered).unwrap();
        let summary = verify(&place.path()).unwrap();
        assert!(summary.fault.is_some() || summary.torn > 0, "byte {at}");
    }
}

#[tokio::test]
async fn a_line_taken_out_put_in_or_moved_is_found() {
    let place = Place::new();
    let content = String::from_utf8(filled(&place).await).unwrap();
    let lines: Vec<&str> = content.lines().collect();
    let check = |lines: &[&str]| {
        std::fs::write(place.path(), lines.join("\n") + "\n").unwrap();
        verify(&place.path()).unwrap().fault
    };
    assert_eq!(check(&lines), None);
    assert_eq!(check(&[lines[0], lines[2]]), Some(VerifyError::Broken { line: 2 }));
    assert_eq!(check(&[lines[0], lines[0], lines[1]]), Some(VerifyError::Broken { line: 2 }));
    assert_eq!(check(&[lines[1], lines[0]]), Some(VerifyError::Broken { line: 1 }));
    assert_eq!(check(&[lines[0], "{}"]), Some(VerifyError::Altered { line: 2 }));
}

#[tokio::test]
async fn a_line_that_a_crash_tore_is_cut_off_and_the_chain_goes_on() {
    let place = Place::new();
    let content = filled(&place).await;
    let last_line = content[..content.len() - 1].iter().rposition(|b| *b == b'\n').unwrap() + 1;
    for cut in [last_line + 1, last_line + 40, content.len() - 1] {
        std::fs::write(place.path(), &content[..cut]).unwrap();
        let (audit, summary) = place.open();
        assert_eq!((summary.lines, summary.fault), (5, None));
        audit.note(act("after"), "seen").await;
        let summary = verify(&place.path()).unwrap();
        assert_eq!((summary.lines, summary.fault, summary.torn), (6, None, 0));
    }
}

#[tokio::test]
async fn an_altered_log_is_told_and_still_taken_on() {
    let place = Place::new();
    let mut content = filled(&place).await;
    content[20] ^= 1;
    std::fs::write(place.path(), &content).unwrap();
    let (audit, summary) = place.open();
    assert_eq!(summary.fault, Some(VerifyError::Altered { line: 1 }));
    audit.begin(act("failover")).await.unwrap().done().await;
}

#[tokio::test]
async fn an_act_that_cannot_be_recorded_is_refused() {
    let place = Place::new();
    let (audit, _) = place.open();
    audit.log.lock().unwrap().len = SIZE_MAX;
    let Err(refusal) = audit.begin(act("x")).await else { panic!("an act went unrecorded") };
    assert!(refusal.reason.contains("is full") && refusal.hint.contains("move"), "{refusal}");
    audit.log.lock().unwrap().len = 0;
    audit.begin(act("x")).await.unwrap().done().await;
}

#[tokio::test]
async fn after_a_failed_write_that_cannot_be_taken_back_nothing_is_recorded_until_a_restart() {
    let place = Place::new();
    let (audit, _) = place.open();
    let good = std::mem::replace(&mut audit.log.lock().unwrap().file, File::open(place.path()).unwrap());
    let Err(refusal) = audit.begin(act("x")).await else { panic!("an act went unrecorded") };
    assert!(refusal.reason.contains("cannot write the audit log"), "{refusal}");
    audit.log.lock().unwrap().file = good;
    let Err(refusal) = audit.begin(act("x")).await else { panic!("an act went unrecorded") };
    assert!(refusal.reason.contains("after a restart only"), "{refusal}");
}

use super::*;

fn open() -> Message {
    let vm = uuid::Uuid::from_u128(7);
    let settings = Settings::from(&model::Settings::default());
    Message::Open(Open { relationship: Relationship { vm, leg: 0 }, generation: 1, session: 2, settings })
}

#[test]
fn messages_come_back_as_they_were_sent() {
    let all = [
        open(),
        Message::Test,
        Message::Done,
        Message::Notice(Notice::FailedOver { generation: 4 }),
        Message::Pong(Ping { token: 9 }),
        Message::CycleAcked(CycleAcked { number: 3, digest: "ab".repeat(32) }),
    ];
    for message in all {
        let frame = message.to_frame(1, 2);
        assert_eq!(Message::from_payload(&frame.payload).unwrap(), message);
    }
}

#[test]
fn fields_of_a_later_version_are_ignored_and_missing_ones_have_defaults() {
    let later = br#"{"type":"opened","suspended":true,"colour":"blue"}"#;
    let Message::Opened(opened) = Message::from_payload(later).unwrap() else { panic!("not opened") };
    assert_eq!(opened, Opened { newest: None, base: None, suspended: true });
    let notice = br#"{"type":"notice","notice":"from-the-future","x":1}"#;
    assert_eq!(Message::from_payload(notice).unwrap(), Message::Notice(Notice::Unknown));
}

#[test]
fn texts_and_lists_beyond_their_limits_are_refused() {
    let message = Message::Joined(Joined { name: "x".repeat(limits::NAME_MAX + 1), addresses: vec![] });
    let err = Message::from_payload(&message.to_frame(1, 0).payload).unwrap_err();
    assert!(matches!(err, MessageError::Value(ConvertError::Text { what: "name", .. })));
    let position = Position { disk: 0, offset: 0 };
    let message = Message::BaseSync(BaseSync { frames: 0, positions: vec![position; 257] });
    assert!(Message::from_payload(&message.to_frame(1, 0).payload).is_err());
}

#[test]
fn an_impossible_disk_is_refused_by_name() {
    let disk = |id, size| Disk { id, key: "k".into(), size };
    assert!(convert::disks(&[disk(0, 512), disk(1, 1 << 46)]).is_ok());
    assert_eq!(convert::disks(&[disk(0, 0)]), Err(ConvertError::DiskSize { disk: model::DiskId(0), size: 0 }));
    assert!(convert::disks(&[disk(0, 513)]).is_err());
    assert!(convert::disks(&[disk(0, (1 << 46) + 512)]).is_err());
    assert_eq!(convert::disks(&[disk(3, 512), disk(3, 512)]), Err(ConvertError::DiskTwice { disk: model::DiskId(3) }));
}

#[test]
fn settings_survive_the_way_and_bad_ones_are_refused() {
    let settings = model::Settings { points: 3, ..Default::default() };
    assert_eq!(model::Settings::try_from(&Settings::from(&settings)), Ok(settings));
    let mut bad = Settings::from(&model::Settings::default());
    bad.points = 25;
    assert!(model::Settings::try_from(&bad).is_err());
}

#[test]
fn a_refusal_keeps_code_kind_and_hint() {
    let refusal = model::Refusal::new(model::ReturnCode::InvalidState, "no").hint("later");
    let Message::Refused(r) = Message::refused(&refusal, model::ErrorKind::Retry) else { panic!("not refused") };
    assert_eq!((r.refusal(), r.error_kind()), (refusal, model::ErrorKind::Retry));
    let odd = Refused { code: 0, kind: "new-word".into(), ..r };
    assert_eq!(odd.refusal().code, model::ReturnCode::Failed);
    assert_eq!(odd.error_kind(), model::ErrorKind::Operator);
}

#[test]
fn a_secret_is_not_printed() {
    let join = Join { secret: "canary".into(), name: "n".into(), addresses: vec![] };
    assert!(!format!("{:?}", Message::Join(join)).contains("canary"));
}

#[test]
fn deep_json_is_refused() {
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    assert!(Message::from_payload(deep.as_bytes()).is_err());
}

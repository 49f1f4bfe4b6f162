use proptest::prelude::*;

use super::text::real_text;
use super::*;
use crate::schema::Kind;

#[test]
fn texts_are_read_in_every_form_clients_write() {
    let read = |cim_type, text: &str| Scalar::parse(cim_type, text).ok();
    assert_eq!(read(CimType::Boolean, "TRUE"), Some(Scalar::Boolean(true)));
    assert_eq!(read(CimType::Boolean, " False "), Some(Scalar::Boolean(false)));
    assert_eq!(read(CimType::Boolean, "1"), Some(Scalar::Boolean(true)));
    assert_eq!(read(CimType::Boolean, "yes"), None);
    assert_eq!(read(CimType::Uint16, " 0xFFff "), Some(Scalar::Uint16(65535)));
    assert_eq!(read(CimType::Uint16, "65536"), None);
    assert_eq!(read(CimType::Uint8, "-1"), None);
    assert_eq!(read(CimType::Sint8, "-128"), Some(Scalar::Sint8(-128)));
    assert_eq!(read(CimType::Sint64, "1 2"), None);
    assert_eq!(read(CimType::Uint64, "--1"), None);
    assert_eq!(read(CimType::Uint64, "0x"), None);
    assert_eq!(read(CimType::Real32, "1e39"), None);
    assert_eq!(read(CimType::Real64, "-INF"), Some(Scalar::Real64(f64::NEG_INFINITY)));
    assert_eq!(read(CimType::Real64, "infinity"), None);
    assert_eq!(read(CimType::Char16, " "), Some(Scalar::Char16(' ')));
    assert_eq!(read(CimType::Char16, "\u{1f600}"), None);
    assert_eq!(read(CimType::Char16, "ab"), None);
    assert_eq!(read(CimType::String, " as it is "), Some(Scalar::from(" as it is ")));
    assert_eq!(read(CimType::Datetime, "2030-01-01T00:00:00Z").unwrap().text().unwrap(), "20300101000000.000000+000");
    assert!(read(CimType::Reference, "root/toy:Toy_Device.Name=\"a\"").unwrap().as_path().is_some());
}

#[test]
fn conversions_are_exact_or_refused() {
    let convert = |value: Scalar, to| value.convert(to).ok();
    assert_eq!(convert(Scalar::Sint64(7), CimType::Uint16), Some(Scalar::Uint16(7)));
    assert_eq!(convert(Scalar::Uint32(70_000), CimType::Uint16), None);
    assert_eq!(convert(Scalar::Uint8(1), CimType::Boolean), Some(Scalar::Boolean(true)));
    assert_eq!(convert(Scalar::Uint8(2), CimType::Boolean), None);
    assert_eq!(convert(Scalar::Boolean(true), CimType::Uint8), None);
    assert_eq!(convert(Scalar::Uint64(u64::MAX), CimType::Real64), None);
    assert_eq!(convert(Scalar::Uint32(16_777_217), CimType::Real32), None);
    assert_eq!(convert(Scalar::Uint32(3), CimType::Real32), Some(Scalar::Real32(3.0)));
    assert_eq!(convert(Scalar::Real64(1e300), CimType::Real32), None);
    assert_eq!(convert(Scalar::Real64(1.0), CimType::Uint8), None);
    assert_eq!(convert(Scalar::from("5"), CimType::Uint8), Some(Scalar::Uint8(5)));
    assert_eq!(convert(Scalar::Uint8(5), CimType::String), None);
}

#[test]
fn values_take_the_shape_of_their_declaration() {
    let numbers = Kind::array(CimType::Uint16);
    let value = Value::Array(vec![Some(Scalar::Sint64(1)), None]);
    assert_eq!(value.clone().conform(&numbers).unwrap(), Value::Array(vec![Some(Scalar::Uint16(1)), None]));
    assert_eq!(Value::from(3u8).conform(&numbers).unwrap(), Value::Array(vec![Some(Scalar::Uint16(3))]));
    assert_eq!(value.clone().conform(&Kind::scalar(CimType::Uint16)), Err(ConvertError::Array));
    let one = Kind { array: Some(Some(1)), ..numbers };
    assert_eq!(value.conform(&one), Err(ConvertError::Length { len: 2, most: 1 }));
    assert_eq!(Value::Null.conform(&one).unwrap(), Value::Null);
    let embedded = Kind::embedded_instance(None);
    assert_eq!(Value::from("text").conform(&embedded), Err(ConvertError::NotEmbedded));
    let instance = Instance::new("Toy_Device");
    assert!(Value::from(instance.clone()).conform(&embedded).is_ok());
    assert!(Value::from(instance).conform(&Kind::scalar(CimType::String)).is_err());
}

#[test]
fn reals_are_written_with_a_point_and_read_back() {
    assert_eq!(real_text(1e16), "1.0e16");
    assert_eq!(real_text(0.1), "0.1");
    assert_eq!(Scalar::Real32(0.1).text().unwrap(), "0.1");
    assert_eq!(Scalar::Real32(f32::NAN).text().unwrap(), "NaN");
}

#[test]
fn types_and_their_names_belong_together() {
    for (cim_type, name) in TYPE_NAMES {
        assert_eq!((CimType::parse(name), cim_type.name()), (Some(cim_type), name));
    }
    assert_eq!(CimType::parse("UINT32"), Some(CimType::Uint32));
    assert_eq!(CimType::parse("object"), None);
}

/// Any value that is not embedded and equals itself.
pub(crate) fn any_scalar() -> impl Strategy<Value = Scalar> {
    prop_oneof![
        any::<bool>().prop_map(Scalar::Boolean),
        any::<u8>().prop_map(Scalar::Uint8),
        any::<u16>().prop_map(Scalar::Uint16),
        any::<u32>().prop_map(Scalar::Uint32),
        any::<u64>().prop_map(Scalar::Uint64),
        any::<i8>().prop_map(Scalar::Sint8),
        any::<i16>().prop_map(Scalar::Sint16),
        any::<i32>().prop_map(Scalar::Sint32),
        any::<i64>().prop_map(Scalar::Sint64),
        any::<f32>().prop_filter("equal to itself", |n| !n.is_nan()).prop_map(Scalar::Real32),
        any::<f64>().prop_filter("equal to itself", |n| !n.is_nan()).prop_map(Scalar::Real64),
        any::<char>().prop_filter("one unit", |c| c.len_utf16() == 1).prop_map(Scalar::Char16),
        ".{0,20}".prop_map(Scalar::String),
        (-62_135_596_800_000_000i64..253_402_207_200_000_000)
            .prop_map(|micros| Scalar::Datetime(DateTime::from_unix_micros(micros).unwrap())),
    ]
}

proptest! {
    #[test]
    fn every_value_is_read_back_from_its_text(value in any_scalar()) {
        prop_assert_eq!(Scalar::parse(value.cim_type(), &value.text().unwrap()).unwrap(), value);
    }

    #[test]
    fn no_text_harms_the_reader(text in ".{0,40}") {
        for (cim_type, _) in TYPE_NAMES {
            if let Ok(value) = Scalar::parse(cim_type, &text) {
                prop_assert_eq!(value.cim_type(), cim_type);
            }
        }
    }
}

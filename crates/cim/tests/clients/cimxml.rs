//! CIM-XML clients.

use crate::programs::{in_environment, installed, output, said, script};
use crate::server::USER;
use crate::world::Running;

const LAMP: &str = r#"Toy_Device.BoxName="red",Slot=1"#;
const SECOND: &str = r#"Toy_Device.BoxName="red",Slot=2"#;
const SERVICE: &str = r#"Toy_Service.SystemName="toys",Name="keeper""#;

#[test]
fn pywbem_drives_every_operation() {
    let server = Running::start();
    script("pywbem_operations.py", &server.url());
}

#[test]
fn a_mock_server_of_others_answers_the_same_to_the_same_questions() {
    let server = Running::start();
    script("pywbem_same_as_mock.py", &server.url());
}

#[test]
fn a_listener_of_others_is_told_what_it_subscribed_to() {
    let server = Running::start();
    script("pywbem_indications.py", &server.url());
}

/// Runs `wbemcli` with an operation, an object and perhaps values.
fn wbemcli(server: &Running, words: &[&str]) -> std::process::Command {
    let (user, password) = USER;
    let mut command = installed("wbemcli");
    let object = format!("http://{user}:{password}@127.0.0.1:{}/root/toy:{}", server.port, words[1]);
    command.args(["-nl", words[0]]).arg(object.trim_end_matches(':')).args(&words[2..]);
    command
}

#[test]
fn wbemcli_understands_every_answer_it_can_ask_for() {
    let server = Running::start();
    let run = |words: &[&str]| output(&mut wbemcli(&server, words));
    let has = |words: &[&str], wanted: &[&str]| {
        let answer = run(words);
        wanted.iter().for_each(|text| assert!(answer.contains(text), "{words:?} lacks {text}:\n{answer}"));
    };
    has(&["ecn", ""], &["root/toy:Toy_Motor", "root/toy:Toy_Holds"]);
    has(&["gc", "Toy_Motor"], &["-Speed=", "-BoxName="]);
    has(&["gcd", "Toy_Box"], &["<CLASS NAME=\"Toy_Box\" SUPERCLASS=\"Toy_Element\">"]);
    has(&["ec", "Toy_Element"], &["Toy_Box : Toy_Element"]);
    has(&["ein", "Toy_Device"], &["Toy_Motor.BoxName=\"red\",Slot=3"]);
    has(&["ei", "Toy_Box"], &["-Weight=2.5", r#"-Name="C:\\odd \"box\", <a> & ä""#]);
    has(&["gi", SECOND], &["-Caption=\"device\"", "-State=0", "-Notes=\"\""]);
    has(
        &["gi", LAMP, "Tags,Flags,Made,Anything"],
        &["-Tags=\"a\",\"\",\"<b>\"", "-Flags=TRUE,FALSE", "-Made=20250301140000.000000+060"],
    );
    has(&["ain", LAMP], &["Toy_Box.Name=\"red\"", "Toy_Service.SystemName"]);
    has(&["ai", LAMP, "Name"], &["-Name=\"red\""]);
    has(&["rin", LAMP], &["Toy_Holds.Holder=root/toy:Toy_Box.Name=\"red\",Held=root/toy:Toy_Device"]);
    has(&["ri", LAMP], &["-Since=1999"]);
    has(&["gp", LAMP, "Caption"], &["lamp"]);
    run(&["sp", LAMP, "Notes=\"set alone\""]);
    has(&["gp", LAMP, "Notes"], &["set alone"]);
    run(&["mi", SECOND, "Notes=both,Samples=3,4"]);
    has(&["gi", SECOND, "Notes,Samples"], &["-Notes=\"both\"", "-Samples=3,4"]);
    has(&["ci", r#"Toy_Device.BoxName="red",Slot=7"#, "BoxName=red,Slot=7,Caption=new"], &["Slot=7"]);
    has(&["gi", r#"Toy_Device.BoxName="red",Slot=7"#], &["-Caption=\"new\""]);
    run(&["di", r#"Toy_Device.BoxName="red",Slot=7"#]);
    let gone = said(&mut wbemcli(&server, &["gi", r#"Toy_Device.BoxName="red",Slot=7"#]));
    assert!(gone.contains("(6) CIM_ERR_NOT_FOUND"), "{gone}");
}

#[test]
fn wbemcli_calls_methods_without_telling_types() {
    let server = Running::start();
    let call = |object: &str, method: &str| output(&mut wbemcli(&server, &["cm", object, method]));
    assert!(call(LAMP, "Reset.Level=3").contains("Reset: 4096\nWas (uint16): 3"));
    let said = call(SERVICE, "Echo.Truth=true,Small=7,Text=\"a b\",Moment=20300101000000.000000+000,Numbers=1,2");
    for wanted in ["Truth (boolean): TRUE", "Small (uint8): 7", "Text (string): a b", "Numbers (uint16): 1,2"] {
        assert!(said.contains(wanted), "{said}");
    }
    // It cuts the namespace of a reference in two.
    let said = call(SERVICE, &format!("Echo.Text=\"x\",Device=root/toy:{LAMP}"));
    assert!(said.contains("Device (reference): root/toy:Toy_Device.BoxName=\"red\",Slot=1"), "{said}");
    for parameter in ["Import.Settings", "Echo.Part"] {
        let said = call(SERVICE, &format!("{parameter}=\"instance of Toy_Part {{ Size = 3; }};\""));
        assert!(said.contains("<VALUE>3</VALUE>"), "{said}");
    }
    assert!(call(SERVICE, "Fail.Code=32773").contains("Fail: 32773"));
}

#[test]
fn pywbemcli_finds_its_way_around() {
    let server = Running::start();
    let (user, password) = USER;
    let run = |words: &[&str]| {
        let mut command = in_environment("pywbemcli");
        command.args(["-s", &server.url(), "-u", user, "-p", password, "-d", "root/toy"]).args(words);
        output(&mut command)
    };
    let has = |words: &[&str], wanted: &str| {
        let answer = run(words);
        assert!(answer.contains(wanted), "{words:?} lacks {wanted}:\n{answer}");
    };
    has(&["server", "info"], "interop, root/interop, root/toy");
    has(&["profile", "list"], "SNIA");
    has(&["class", "tree", "Toy_Element"], "|   +-- Toy_Motor");
    has(&["instance", "count", "Toy_*"], "Toy_Holds");
    has(&["instance", "shrub", LAMP], "Toy_Service(ResultClass)(1 insts)");
    has(&["instance", "invokemethod", LAMP, "Reset", "-p", "Level=3"], "ReturnValue=4096\nWas=3");
    run(&["instance", "modify", LAMP, "-p", "Notes=changed"]);
    has(&["instance", "get", LAMP], "Notes = \"changed\"");
    has(&["subscription", "list"], "TOTAL INSTANCES");
}

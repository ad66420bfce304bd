//! `proto/runtime/v1/api.proto` says exactly what `tests/data/cri-v1.tsv` says: every RPC, message, field, type and
//! number, and nothing more. The Rust types are generated from it, so what a client sends is what the daemon reads.

use std::collections::BTreeSet;

use prost_reflect::{Cardinality, DescriptorPool, EnumDescriptor, FieldDescriptor, Kind, MessageDescriptor};

const TABLE: &str = include_str!("data/cri-v1.tsv");

fn expected() -> BTreeSet<String> {
    TABLE
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| {
            let columns: Vec<&str> = line.split('\t').collect();
            let of = |n: usize| columns.get(n).copied().unwrap_or_default();
            let kind = of(3).replace("map<string,string>", "map<string, string>");
            format!("{} {} {} {} {}", of(0), of(1), of(2), kind, of(4))
                .trim_end()
                .to_owned()
        })
        .collect()
}

fn name_in(package: &str, full: &str) -> String {
    full.strip_prefix(package)
        .and_then(|rest| rest.strip_prefix('.'))
        .unwrap_or(full)
        .to_owned()
}

fn type_of(field: &FieldDescriptor, package: &str) -> String {
    let scalar = |kind: Kind| match kind {
        Kind::Message(message) => name_in(package, message.full_name()),
        Kind::Enum(of) => name_in(package, of.full_name()),
        other => format!("{other:?}").to_lowercase(),
    };
    if field.is_map() {
        let Kind::Message(entry) = field.kind() else {
            panic!("a map field is a message")
        };
        let (key, value) = (entry.map_entry_key_field().kind(), entry.map_entry_value_field().kind());
        return format!("map<{}, {}>", scalar(key), scalar(value));
    }
    match field.cardinality() {
        Cardinality::Repeated => format!("repeated {}", scalar(field.kind())),
        _ => scalar(field.kind()),
    }
}

fn add_message(message: &MessageDescriptor, package: &str, found: &mut BTreeSet<String>) {
    if message.is_map_entry() {
        return;
    }
    let owner = name_in(package, message.full_name());
    let mut fields = message.fields().peekable();
    if fields.peek().is_none() {
        found.insert(format!("message {owner}"));
    }
    for field in fields {
        // A reference to a nested type is written without its owner.
        let kind = type_of(&field, package).replace(&format!("{owner}."), "");
        found.insert(format!("field {owner} {} {kind} {}", field.name(), field.number()));
    }
    message
        .child_messages()
        .for_each(|child| add_message(&child, package, found));
    message.child_enums().for_each(|child| add_enum(&child, package, found));
}

fn add_enum(of: &EnumDescriptor, package: &str, found: &mut BTreeSet<String>) {
    let owner = name_in(package, of.full_name());
    for value in of.values() {
        found.insert(format!("enum {owner} {}  {}", value.name(), value.number()));
    }
}

fn actual() -> BTreeSet<String> {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/proto");
    let descriptors = protox::compile(["runtime/v1/api.proto"], [root]).expect("the proto compiles");
    let pool = DescriptorPool::from_file_descriptor_set(descriptors).expect("the descriptors are whole");
    let package = "runtime.v1";
    let mut found = BTreeSet::new();
    for service in pool.services() {
        for method in service.methods() {
            let stream = if method.is_server_streaming() { "stream " } else { "" };
            let (input, output) = (method.input(), method.output());
            found.insert(format!(
                "rpc {} {} {} {stream}{}",
                service.name(),
                method.name(),
                name_in(package, input.full_name()),
                name_in(package, output.full_name())
            ));
        }
    }
    let files = pool.files().filter(|file| file.package_name() == package);
    for file in files {
        file.messages()
            .for_each(|message| add_message(&message, package, &mut found));
        file.enums().for_each(|of| add_enum(&of, package, &mut found));
    }
    found
}

#[test]
fn the_proto_is_the_table_field_by_field() {
    let (expected, actual) = (expected(), actual());
    let missing: Vec<_> = expected.difference(&actual).collect();
    let extra: Vec<_> = actual.difference(&expected).collect();
    assert!(
        missing.is_empty() && extra.is_empty(),
        "missing: {missing:#?}\nextra: {extra:#?}"
    );
    assert!(actual.len() > 600, "the table was read in full");
}

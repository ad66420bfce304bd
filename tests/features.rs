//! The table of capabilities names proofs that exist.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// How many rows the table has.
const ROWS: u32 = 159;

#[derive(Debug, PartialEq)]
enum Proof {
    Test { file: String, name: String },
    Critest(String),
    Readme(String),
    Open,
}

struct Row {
    number: u32,
    proofs: Vec<Proof>,
}

fn package() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(package().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn rows(table: &str) -> Result<Vec<Row>, String> {
    let mut rows = Vec::new();
    for line in table.lines().filter(|line| line.starts_with("| ")) {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [number, capability, proofs] = cells[..] else {
            return Err(format!("three cells: {line}"));
        };
        let Ok(number) = number.parse() else { continue };
        if capability.is_empty() {
            return Err(format!("row {number} says nothing"));
        }
        let proofs = proofs
            .split(", ")
            .map(|words| proof(words).ok_or(format!("row {number}: {words:?}")));
        rows.push(Row {
            number,
            proofs: proofs.collect::<Result<_, _>>()?,
        });
    }
    Ok(rows)
}

fn proof(words: &str) -> Option<Proof> {
    let quoted = |after: &str| after.strip_prefix('"')?.strip_suffix('"').map(str::to_owned);
    if words == "open" {
        Some(Proof::Open)
    } else if let Some(after) = words.strip_prefix("critest ") {
        quoted(after).map(Proof::Critest)
    } else if let Some(after) = words.strip_prefix("README ") {
        quoted(after).map(Proof::Readme)
    } else {
        let (file, name) = words.strip_prefix('`')?.strip_suffix('`')?.split_once("::")?;
        Some(Proof::Test {
            file: file.to_owned(),
            name: name.to_owned(),
        })
    }
}

/// The names of the tests in the file that a proof names; none if there is no such file.
fn tests_in(file: &str) -> Option<BTreeSet<String>> {
    let (below, file) = match file.strip_prefix("src/") {
        Some(rest) => ("src", rest),
        None => ("tests", file),
    };
    let candidates: [PathBuf; 2] =
        [format!("{file}.rs"), format!("{file}/mod.rs")].map(|name| package().join(below).join(name));
    let text = candidates.iter().find_map(|path| fs::read_to_string(path).ok())?;
    Some(tests_of(&text))
}

/// The functions that stand below a test's attribute, perhaps with others in between.
fn tests_of(text: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let mut is_test = false;
    for line in text.lines().map(str::trim) {
        if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
            is_test = true;
        } else if let Some(after) = line.strip_prefix("async ").unwrap_or(line).strip_prefix("fn ")
            && std::mem::take(&mut is_test)
        {
            names.extend(after.split('(').next().map(str::to_owned));
        }
    }
    names
}

/// What is wrong with `proof`, if anything is.
fn wrong(proof: &Proof, readme: &str, skips: &str, suites: &str) -> Option<String> {
    match proof {
        Proof::Open => None,
        Proof::Test { file, name } => match tests_in(file) {
            None => Some(format!("there is no {file}")),
            Some(names) => (!names.contains(name)).then(|| format!("{file} has no test {name}")),
        },
        Proof::Readme(words) => {
            let said = readme
                .lines()
                .any(|line| line.starts_with("| ") && line.contains(words.as_str()));
            (!said).then(|| format!("no line of the README's status says {words:?}"))
        }
        Proof::Critest(start) => {
            // Below that line is what counts with an external runtime only.
            let lines = skips.lines().take_while(|line| *line != "[handlers]");
            let mut skips = lines
                .filter(|line| !line.starts_with('#'))
                .filter_map(|line| line.split_once(" | "));
            let skipped = skips.any(|(skip, _)| skip.starts_with(start.as_str()) || start.starts_with(skip));
            let first = start.split(' ').next().unwrap_or_default();
            let known = suites.contains(&format!("\"{first} "));
            (skipped || !known).then(|| format!("critest does not run {start:?} in full"))
        }
    }
}

#[test]
fn every_capability_has_a_row_and_every_proof_exists() {
    let rows = rows(&read("docs/features.md")).expect("the table reads");
    let numbers: Vec<u32> = rows.iter().map(|row| row.number).collect();
    assert_eq!(numbers, (1..=ROWS).collect::<Vec<_>>());
    let (readme, skips, suites) = (
        read("README.md"),
        read("hack/critest.skips"),
        read("hack/harness/specs.py"),
    );
    let mut mistakes = Vec::new();
    for row in &rows {
        let found = row
            .proofs
            .iter()
            .filter_map(|proof| wrong(proof, &readme, &skips, &suites));
        mistakes.extend(found.map(|mistake| format!("row {}: {mistake}", row.number)));
    }
    assert!(mistakes.is_empty(), "{}", mistakes.join("\n"));
    let open: Vec<u32> = rows
        .iter()
        .filter(|row| row.proofs.contains(&Proof::Open))
        .map(|row| row.number)
        .collect();
    println!("{} of {ROWS} rows are open: {open:?}", open.len());
}

#[test]
fn what_does_not_exist_is_found() {
    let table = "| | capability | proof |\n|---|---|---|\n| 1 | x | `features::what_does_not_exist_is_found`, `features::nothing`, \
                 critest \"AppArmor\", README \"no such line\", open |\n";
    assert!(rows("| 1 | x | nonsense |").is_err() && rows("| 1 | x |").is_err());
    let rows = rows(table).expect("it reads");
    let found = rows[0]
        .proofs
        .iter()
        .filter_map(|proof| wrong(proof, "| a | b |", "AppArmor | why", "\"AppArmor \""));
    assert_eq!(found.count(), 3, "all but the first and the last");
}

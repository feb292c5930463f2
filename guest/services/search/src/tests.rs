//! Searches in a module built by the same script as the real one, from a few cities.

extern crate std;

use std::future::Future;
use std::path::Path;
use std::pin::pin;
use std::process::Command;
use std::string::String;
use std::sync::OnceLock;
use std::task::{Context, Poll, Waker};
use std::vec::Vec;
use std::{assert_eq, format};

use proptest::prelude::*;
use skein_unikernel::Request;

use super::{Index, IndexError, Query, answer, init};

fn module() -> &'static [u8] {
    static MODULE: OnceLock<Vec<u8>> = OnceLock::new();
    MODULE.get_or_init(|| {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let out = std::env::temp_dir().join(format!("skein-cities-{}", std::process::id()));
        let status = Command::new("python3")
            .arg(here.join("data/build.py"))
            .arg("--cities")
            .arg(here.join("data/few_cities.json"))
            .arg(&out)
            .status()
            .expect("python3 is installed");
        assert!(status.success());
        let bytes = std::fs::read(&out).expect("the module");
        std::fs::remove_file(&out).expect("removed");
        bytes
    })
}

/// Runs a future that waits for nobody but itself.
fn finish<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            return output;
        }
    }
}

#[track_caller]
fn check(query: &str, expect: &[&str]) {
    let index = Index::new(module()).unwrap();
    let found = finish(Query::parse(&index, query).search(&index, 10));
    let names: Vec<_> = found.best.iter().map(|number| index.city(*number).unwrap()).collect();
    let names: Vec<_> =
        names.iter().map(|city| format!("{} {}", city.name, city.country)).collect();
    assert_eq!(names, expect, "{query}");
    assert_eq!(found.total, expect.len());
}

#[test]
fn names_are_found() {
    let paris = ["Paris FR", "Paris US", "Parisburg DE"];
    check("paris", &paris);
    check("PÁRIS", &paris);
    check("paris country:us", &["Paris US"]);
    check("Париж", &["Paris FR", "Paris US"]);
    check("巴黎", &["Paris FR"]);
    check("lutetia", &["Paris FR"]);
    check("zurich", &["Zürich CH"]);
    check("Zürich", &["Zürich CH"]);
    check("sao paulo", &["São Paulo BR"]);
    check("paulo sao", &["São Paulo BR"]);
    check("são-paulo", &["São Paulo BR"]);
    check("lodz", &["Łódź PL"]);
    check("straße", &[]);
    check("nowhere", &[]);
    check("country:br", &["São Paulo BR"]);
}

#[test]
fn whole_words_and_own_names_come_first() {
    // Parisburg has more inhabitants, but only begins with the word.
    check("paris", &["Paris FR", "Paris US", "Parisburg DE"]);
    check("pari", &["Parisburg DE", "Paris FR", "Paris US"]);
    // A foreign name of Paris, whole, before Parisburg's own beginning.
    check("parisorum", &["Paris FR"]);
}

#[test]
fn requests_of_every_shape() {
    let index = Index::new(module()).unwrap();
    let ask = |method, target, body: &str| {
        let request = Request::new(method, target, body.as_bytes().to_vec()).unwrap();
        let response = finish(answer(&index, &request));
        (response.status(), String::from_utf8(response.body().to_vec()).unwrap())
    };
    for (method, target, body) in [
        ("GET", "/?q=paris&limit=1", ""),
        ("POST", "/", "{\"q\": \"paris\", \"limit\": 1}"),
        ("POST", "/?limit=1", " paris\n"),
    ] {
        let (status, json) = ask(method, target, body);
        assert_eq!(status, 200, "{json}");
        let value: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(value["total"], 3, "{json}");
        assert_eq!(value["results"].as_array().map(Vec::len), Some(1));
        assert_eq!(value["results"][0]["timezone"], "Europe/Paris");
        assert_eq!(value["results"][0]["latitude"], 48.85341);
        assert!(json.contains("GeoNames") && json.contains("CC BY 4.0"));
    }
    for (target, body, code) in [
        ("/", "", "QUERY_EMPTY"),
        ("/", "...", "QUERY_EMPTY"),
        ("/", "{\"q\": 7}", "QUERY_MALFORMED"),
        ("/?q=x&limit=y", "", "LIMIT_MALFORMED"),
    ] {
        let (status, json) = ask("POST", target, body);
        assert!(status == 400 && json.contains(code), "{status} {json}");
    }
}

#[test]
fn other_data_are_refused() {
    assert_eq!(Index::new(b"").unwrap_err(), IndexError::Malformed);
    assert_eq!(Index::new(&module()[..module().len() / 2]).unwrap_err(), IndexError::Malformed);
    assert_eq!(init(), Err(IndexError::Missing));
}

proptest! {
    #[test]
    fn damaged_data_do_no_harm(at in 8usize.., byte in any::<u8>(), text in "[a-zà-ž巴 ]{0,12}") {
        let mut bytes = module().to_vec();
        // Half of the damage goes to the header and the tables' beginnings.
        let at = if at % 2 == 0 { 8 + at % 44 } else { at % bytes.len() };
        bytes[at] = byte;
        if let Ok(index) = Index::new(&bytes) {
            let found = finish(Query::parse(&index, &text).search(&index, 5));
            for number in found.best {
                let _ = index.city(number);
            }
        }
    }

    #[test]
    fn any_query_is_answered(text in ".{0,40}") {
        let index = Index::new(module()).unwrap();
        let query = Query::parse(&index, &text);
        let found = finish(query.search(&index, 1000));
        prop_assert!(found.best.len() <= found.total);
    }
}

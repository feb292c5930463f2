//! The services of this workspace, and the one that newcomers begin with, as machines.

use std::fs;
use std::future::Future;
use std::path::Path;
use std::pin::pin;
use std::process::Command;
use std::task::{Context, Poll, Waker};

use machine_tests::{Machine, Options, Scratch, build_command, image, workspace};
use skein_unikernel::Request;
use skein_wire::ArchiveBuilder;

/// The module archive of a few cities, made by the same script as the real one.
fn few_cities() -> Vec<u8> {
    let data = workspace().join("services/search/data");
    let scratch = Scratch::new();
    let out = scratch.join("cities.bin");
    let status = Command::new("python3")
        .arg(data.join("build.py"))
        .arg("--cities")
        .arg(data.join("few_cities.json"))
        .arg(&out)
        .status()
        .expect("python3 is installed");
    assert!(status.success());
    let mut archive = ArchiveBuilder::new();
    archive.add("readme.txt", b"another module").expect("a path");
    archive.add("cities.bin", &fs::read(out).expect("the module")).expect("a path");
    archive.finish()
}

#[test]
fn search_finds_cities_in_its_module() {
    let options = Options { modules: Some(few_cities()), ..Options::default() };
    let machine = Machine::start(&image("search"), &options);
    let answer = machine.request("GET", "/?q=Z%C3%9CRICH&limit=1", b"");
    assert_eq!(answer.status, 200);
    assert!(answer.text().contains("\"total\":1,"), "{}", answer.text());
    assert!(answer.text().contains("\"name\":\"Zürich\""), "{}", answer.text());
    let answer = machine.request("POST", "/", b"{\"q\": \"paris country:US\"}");
    assert!(answer.text().contains("America/Chicago"), "{}", answer.text());
    assert_eq!(machine.request("POST", "/", b"{").status, 400);
}

#[test]
fn search_does_not_start_without_its_module() {
    let mut other = ArchiveBuilder::new();
    other.add("cities.txt", b"Paris").expect("a path");
    for (modules, words) in [
        (None, "the data module cities.bin is missing"),
        (Some(other.finish()), "the data module cities.bin is missing"),
    ] {
        let options = Options { modules, ..Options::default() };
        let mut machine = Machine::launch(&image("search"), &options);
        assert_eq!(machine.wait_exit(), 37, "{}", machine.output());
        let expected = format!("fatal: the service did not start: {words}");
        assert_eq!(machine.output().matches(&expected).count(), 2, "{}", machine.output());
    }
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

#[test]
fn render_draws_on_a_machine_what_it_draws_on_the_host() {
    let machine = Machine::start(&image("render"), &Options::default());
    let body = br#"{"width":64,"height":40,"x":8,"y":4,"w":48,"h":30,"seed":3,"samples":1}"#;
    let answer = machine.request("POST", "/", body);
    assert_eq!((answer.status, answer.body.len()), (200, 48 * 30 * 3));
    let request = Request::new("POST", "/", body.to_vec()).expect("a request");
    let expected = finish(render::handle(request));
    assert!(answer.body == expected.body(), "machine and host draw different pictures");
    let png = machine.request("GET", "/?width=16&height=10&samples=1", b"");
    assert_eq!(png.field("content-type"), Some("image/png"));
}

#[test]
fn the_template_becomes_a_machine() {
    let scratch = Scratch::new();
    let template = workspace().join("template");
    let here = scratch.join("hello");
    fs::create_dir_all(here.join("src")).expect("a directory");
    fs::copy(template.join("src/main.rs"), here.join("src/main.rs")).expect("copied");
    let manifest = fs::read_to_string(template.join("Cargo.toml")).expect("the manifest");
    let kernel = workspace().join("unikernel");
    let manifest = manifest.replace("../unikernel", &kernel.display().to_string());
    fs::write(here.join("Cargo.toml"), manifest).expect("written");
    // The dependencies that are built already serve again.
    let target = workspace().join("target");
    let output =
        build_command(&here).env("CARGO_TARGET_DIR", &target).output().expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let image = target.join(Path::new("x86_64-unknown-linux-gnu/release/hello"));
    let options = Options { extra_words: "env.GREETING=Good%20day".into(), ..Options::default() };
    let machine = Machine::start(&image, &options);
    assert_eq!(machine.request("GET", "/?name=Ada", b"").text(), "Good day, Ada!\n");
}

//! Measures starts of a service: `measure [SERVICE] [COUNT]`, default `echo 20`.
//!
//! One line per figure, with minimum, median and 90th percentile over COUNT machines, one at a
//! time: kernel entry to listening as the machine reports it, process start to the `ready` line,
//! process start to the first HTTP answer, a request over a connection that is open, and the
//! proportional memory of the process afterwards.

use std::fs;
use std::time::Instant;

use machine_tests::{Machine, Options, image};
use skein_wire::{ArchiveBuilder, Seed};

fn main() {
    let mut arguments = std::env::args().skip(1);
    let service = arguments.next().unwrap_or("echo".into());
    let count: usize = arguments.next().and_then(|count| count.parse().ok()).unwrap_or(20).max(1);
    let image = image(&service);
    let mut options = Options { memory_mib: 32, ..Options::default() };
    options.config.seed = Some(Seed([7; 32]));
    if service == "search" {
        let cities = machine_tests::workspace().join("target/cities.bin");
        let cities = fs::read(cities).expect("data/build.py has built the cities");
        let mut archive = ArchiveBuilder::new();
        archive.add("cities.bin", &cities).expect("a path");
        options.modules = Some(archive.finish());
    }
    let mut figures: [(&str, Vec<f64>); 5] = [
        ("kernel entry to listening, ms", vec![]),
        ("process start to ready, ms", vec![]),
        ("process start to first answer, ms", vec![]),
        ("warm request, ms", vec![]),
        ("proportional memory, MiB", vec![]),
    ];
    for _ in 0..count {
        let start = Instant::now();
        let mut machine = Machine::launch(&image, &options);
        let boot_us = machine.wait_ready();
        let ready = start.elapsed();
        let mut client = machine.connect();
        let first = client.request("GET", "/_skein/health", b"");
        let answered = start.elapsed();
        assert_eq!(first.status, 200);
        let mut warm: Vec<f64> = (0..50)
            .map(|_| {
                let start = Instant::now();
                client.request("POST", "/?q=paris", b"{\"q\":\"paris\"}");
                start.elapsed().as_secs_f64() * 1e3
            })
            .collect();
        warm.sort_by(f64::total_cmp);
        let values = [
            boot_us as f64 / 1e3,
            ready.as_secs_f64() * 1e3,
            answered.as_secs_f64() * 1e3,
            warm[warm.len() / 2],
            proportional_mib(machine.pid()),
        ];
        for ((_, all), value) in figures.iter_mut().zip(values) {
            all.push(value);
        }
    }
    println!("{service}, {count} machines: minimum / median / 90th percentile");
    for (name, mut values) in figures {
        values.sort_by(f64::total_cmp);
        let at = |share: usize| values[(values.len() - 1) * share / 100];
        println!("{name}: {:.2} / {:.2} / {:.2}", at(0), at(50), at(90));
    }
}

fn proportional_mib(pid: u32) -> f64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with("Pss:")).unwrap_or_default();
    let kib: f64 = line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).unwrap_or(0.0);
    kib / 1024.0
}

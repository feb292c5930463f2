//! Starting, serving at capacity, idling, ending in every way, and continuing from saved state.

use std::time::{Duration, Instant};

use machine_tests::{Machine, Options, image};
use skein_wire::{GuestLine, HostLine, Identity, Seed};

fn with_words(words: &str) -> Options {
    Options { extra_words: words.into(), ..Options::default() }
}

/// Sends a request that ends the machine and checks how it ended.
fn ends(target: &str, status: i32, words: &str) {
    let mut machine = Machine::start(&image("echo"), &Options::default());
    machine.connect().send_request("GET", target, b"");
    assert_eq!(machine.wait_exit(), status, "{}", machine.output());
    assert_eq!(machine.next_line(), GuestLine::Stopping { code: (status >> 1) as u8 });
    let output = machine.output();
    assert_eq!(output.matches(words).count(), 2, "on log and serial port: {output}");
}

#[test]
fn a_panic_ends_the_machine_with_its_place() {
    ends("/?panic=1", 35, "panic: a request asked for a panic at services/echo/src/lib.rs:");
}

#[test]
fn a_stack_overflow_is_an_exception() {
    ends("/?overflow=1", 41, "(stack overflow)");
}

#[test]
fn exhausted_memory_has_a_code_of_its_own() {
    ends("/?oom=1", 39, "panic: memory allocation of ");
}

/// Launches a machine that cannot start.
fn cannot_start(options: &Options, words: &str) {
    let mut machine = Machine::launch(&image("echo"), options);
    assert_eq!(machine.wait_exit(), 37, "{}", machine.output());
    let output = machine.output();
    assert_eq!(output.matches(&format!("fatal: {words}")).count(), 2, "{output}");
}

#[test]
fn a_machine_that_cannot_start_says_why() {
    cannot_start(&with_words("port=0"), "command line: value of port is malformed");
    cannot_start(&with_words(&"x".repeat(2040)), "command line of 2049 bytes");
    cannot_start(
        &Options { network: false, ..Options::default() },
        "the machine has no network device",
    );
    let modules =
        Some(b"not an archive, and long enough to hold a header if it were one: ".repeat(4));
    cannot_start(
        &Options { modules, ..Options::default() },
        "module archive has a malformed header at byte 0",
    );
}

#[test]
fn an_orderly_stop_finishes_what_is_in_service() {
    let mut machine = Machine::start(&image("echo"), &with_words("capacity=2"));
    let mut idle = machine.connect();
    assert_eq!(idle.request("POST", "/", b"x").status, 200);
    let mut busy = machine.connect();
    busy.send_request("POST", "/?sleep_ms=500", b"in service");
    machine.wait_for("the request to be in service", |m| (m.stats().in_service == 1).then_some(()));
    machine.tell(&HostLine::Stop);
    assert!(idle.is_closed(), "idle connections end at once");
    let answer = busy.answer("POST");
    assert_eq!((answer.status, answer.field("connection")), (200, Some("close")));
    assert_eq!(answer.body, b"in service");
    drop(busy);
    assert_eq!(machine.next_line(), GuestLine::Stopping { code: 0x10 });
    assert_eq!(machine.wait_exit(), 33);
}

#[test]
fn no_more_than_the_capacity_is_served_at_a_time() {
    let mut machine = Machine::start(&image("echo"), &with_words("capacity=2"));
    let mut clients: Vec<_> = (0..5).map(|_| machine.connect()).collect();
    for client in &mut clients {
        client.send_request("POST", "/?sleep_ms=300", b"x");
    }
    let mut most = 0;
    loop {
        let stats = machine.stats();
        most = most.max(stats.in_service);
        if stats.requests == 5 {
            break;
        }
        // Whoever waits for a place does not keep the machine from saying that it is well.
        assert_eq!(machine.request("GET", "/_skein/health", b"").status, 200);
    }
    assert_eq!(most, 2);
    for client in &mut clients {
        assert_eq!(client.answer("POST").status, 200);
    }
}

#[test]
fn an_idle_machine_sleeps() {
    let mut idle = Machine::start(&image("echo"), &Options::default());
    let busy = Machine::start(&image("echo"), &Options::default());
    assert_eq!(idle.request("GET", "/", b"").status, 200);
    busy.connect().send_request("GET", "/?hang=1", b"");
    let before = (idle.cpu_ticks(), busy.cpu_ticks());
    let end = Instant::now() + Duration::from_secs(2);
    while Instant::now() < end {
        std::thread::sleep(Duration::from_millis(50));
    }
    let used = (idle.cpu_ticks() - before.0, busy.cpu_ticks() - before.1);
    println!("CPU time in 2 s: idle machine {} ticks, spinning machine {} ticks", used.0, used.1);
    assert!(used.1 > 0 && used.0 * 10 <= used.1, "{used:?}");
    let stats = idle.stats();
    assert!(stats.busy_us * 4 < stats.uptime_us, "{stats:?}");
}

#[test]
fn an_address_comes_from_dhcp() {
    let mut options = Options::default();
    (options.config.ip, options.config.gw) = (None, None);
    let mut machine = Machine::start(&image("echo"), &options);
    assert_eq!(machine.request("POST", "/", b"leased").body, b"leased");
    let words = "machine listens on 10.0.2.15:80";
    machine.wait_for("the address in the log", |m| m.log().contains(words).then_some(()));
}

#[test]
fn parameters_reach_the_machine() {
    let mut options = Options::default();
    options.config.host = "echo-7".into();
    options.config.clock = 1_794_000_000_000_000_000;
    options.config.seed = Some(Seed([7; 32]));
    let mut machine = Machine::start(&image("echo"), &options);
    let answer = machine.request("GET", "/", b"");
    assert!(answer.text().contains("\"host\":\"echo-7\""));
    assert!(answer.field("date").is_some_and(|date| date.contains("Nov 2026")), "{answer:?}");
    machine.wait_for("the name in the log", |m| m.log().contains("echo-7 listens").then_some(()));
}

#[test]
fn nonsense_on_the_control_channel_is_ignored() {
    let mut machine = Machine::start(&image("echo"), &Options::default());
    machine.tell_bytes(b"dance\nidentity ip=everywhere\n\xff\xfe\n");
    machine.tell_bytes(&[b'x'; 5000]);
    machine.tell_bytes(b"\n");
    assert_eq!(machine.stats().requests, 0);
    assert_eq!(machine.request("POST", "/", b"fine").body, b"fine");
}

#[test]
fn a_new_identity_is_taken() {
    let mut machine = Machine::start(&image("echo"), &Options::default());
    let mut old = machine.connect();
    assert_eq!(old.request("POST", "/", b"x").status, 200);
    let identity = Identity {
        host: Some("someone-else".into()),
        clock: Some(1_800_000_000_000_000_000),
        seed: Some(Seed([1; 32])),
        ..Identity::default()
    };
    machine.tell(&HostLine::Identity(Box::new(identity)));
    machine.wait_ready();
    let answer = machine.request("GET", "/", b"");
    assert!(answer.text().contains("\"host\":\"someone-else\""));
    assert!(answer.field("date").is_some_and(|date| date.contains("Jan 2027")), "{answer:?}");
}

#[test]
fn a_saved_machine_continues_as_another() {
    let echo = image("echo");
    let mut first = Machine::start(&echo, &Options::default());
    let saved = first.files().join("saved");
    let migrate = format!(
        r#"{{"execute":"migrate","arguments":{{"uri":"exec:cat > {}"}}}}"#,
        saved.display()
    );
    let _ = first.qmp(&[r#"{"execute":"stop"}"#, &migrate]);
    first.wait_for("the state to be saved", |machine| {
        machine.qmp(&[r#"{"execute":"query-migrate"}"#]).contains("\"completed\"").then_some(())
    });
    let incoming = format!("exec:cat {}", saved.display());
    let options = Options {
        mac: "52:54:00:aa:bb:cc",
        qemu: vec!["-incoming".into(), incoming],
        ..Options::default()
    };
    let mut second = Machine::launch(&echo, &options);
    second.wait_for("the state to be loaded", |machine| {
        let status = machine.qmp(&[r#"{"execute":"query-status"}"#]);
        (!status.contains("inmigrate")).then_some(())
    });
    let _ = second.qmp(&[r#"{"execute":"cont"}"#]);
    let mac = Some([0x52, 0x54, 0, 0xaa, 0xbb, 0xcc]);
    let identity = Identity { mac, host: Some("second".into()), ..Identity::default() };
    second.tell(&HostLine::Identity(Box::new(identity)));
    second.wait_ready();
    let answer = second.request("GET", "/", b"");
    assert!(answer.text().contains("\"host\":\"second\""), "{}", answer.text());
}

#[test]
fn a_host_that_does_not_read_does_not_stop_the_machine() {
    let mut machine = Machine::start(&image("echo"), &Options::default());
    // More answers than the channel holds.
    for _ in 0..40 {
        machine.tell_bytes(&b"stats\n".repeat(100));
    }
    assert_eq!(machine.request("POST", "/", b"still here").body, b"still here");
    assert!(machine.stats().uptime_us > 0);
}

#[test]
fn the_clock_keeps_the_hosts_time() {
    let mut machine = Machine::start(&image("echo"), &Options::default());
    let mut look = || {
        let before = Instant::now();
        let uptime = Duration::from_micros(machine.stats().uptime_us);
        (before, uptime, Instant::now())
    };
    let first = look();
    let mut last = look();
    while last.0 - first.2 < Duration::from_secs(1) {
        // Requests in between make the machine sleep and wake, which is when it calibrates.
        std::thread::sleep(Duration::from_millis(20));
        last = look();
    }
    let (least, most) = (last.0 - first.2, last.2 - first.0);
    let passed = last.1 - first.1;
    let fits = passed > least.mul_f64(0.98) && passed < most.mul_f64(1.02);
    assert!(fits, "{passed:?} passed on the machine, {least:?} to {most:?} on the host");
}

//! The command line: the real binary, against a world, and on hosts where something is missing.

use anyhow::{Context, Result, ensure};
use skein_tests::{Setup, Skein, Up, World, run, service, state_folder};
use std::fs;
use std::net::TcpListener;

#[test]
fn a_newcomer_s_commands_work() {
    run(Setup::nodes(2), async |world| {
        world.import_echo().await?;
        let skein = Skein::of(world.client().target());
        let say = async |words: &str| {
            let words: Vec<&str> = words.split_whitespace().collect();
            skein.say(&words).await
        };
        ensure!(say("service create echo --max 2 --zero-grace 60s").await?.good()? == "echo\n");
        ensure!(say("service ls -o name").await?.good()? == "echo\n");
        ensure!(say("image ls -o name").await?.good()? == "echo\n");
        ensure!(say("node ls -o name").await?.good()? == "n1\nn2\n");
        let table = say("node ls").await?.good()?;
        ensure!(table.starts_with("NAME") && table.contains("ready"), "{table}");
        let wide = say("node ls -o wide").await?.good()?;
        ensure!(wide.contains("VMM") && wide.contains("QEMU") && !table.contains("VMM"), "{wide}");
        let json: serde_json::Value = serde_json::from_str(&say("node ls -o json").await?.good()?)?;
        ensure!(json[1]["name"] == "n2" && json[1]["accel"] == "tcg", "{json}");
        ensure!(say("call echo --data hello").await?.good()? == "hello");
        let id = say("job submit echo --data job").await?.good()?.trim().to_owned();
        let waited = say(&format!("job wait {id} --timeout 50s")).await?.good()?;
        ensure!(waited.contains("done"), "{waited}");
        ensure!(say(&format!("job result {id}")).await?.good()? == "job");
        let shown = say(&format!("job show {id}")).await?.good()?;
        ensure!(shown.contains("state") && shown.contains("done"), "{shown}");
        ensure!(say("job ls -o name --service echo").await?.good()?.contains(&id));
        ensure!(say("job ls --status waiting -o name").await?.good()?.is_empty());
        let waited = say("job submit echo --wait --data waited").await?;
        ensure!(waited.status == 0 && waited.out == "waited", "{waited:?}");
        machines(world, &skein).await?;
        let shown = say("service show echo").await?.good()?;
        ensure!(shown.contains("decision") && shown.contains("rule"), "{shown}");
        say("service scale echo --min 2 --wait 2").await?.good()?;
        ensure!(say("ps -o name").await?.good()?.lines().count() == 2);
        let json: serde_json::Value =
            serde_json::from_str(&say("api GET /v1/version").await?.good()?)?;
        ensure!(json["cloud"] == world.cloud().id());
        say("node cordon n1").await?.good()?;
        ensure!(say("node ls").await?.good()?.contains("cordoned"));
        say("node uncordon n1").await?.good()?;
        let events = say("events --kind job_done -o json").await?.good()?;
        ensure!(events.lines().count() == 3, "{events}");
        ensure!(say("service rm echo").await?.good()? == "echo\n");
        ensure!(say("image rm echo").await?.good()? == "echo\n");
        Ok(())
    });
}

async fn machines(world: &World, skein: &Skein) -> Result<()> {
    let machine = world.ready("echo", 1).await?.remove(0).id;
    let said = skein.say(&["vm", "ls", "-o", "name"]).await?.good()?;
    ensure!(said.trim() == machine, "{said}");
    let log = skein.say(&["vm", "logs", &machine]).await?.good()?;
    ensure!(!log.trim().is_empty(), "an empty log");
    ensure!(skein.say(&["vm", "show", &machine]).await?.good()?.contains("10.64."));
    skein.say(&["vm", "stop", &machine]).await?.good()?;
    world.ready("echo", 0).await?;
    let all = skein.say(&["vm", "ls", "--all", "-o", "wide"]).await?.good()?;
    ensure!(all.contains(&machine) && all.contains("stopped"), "{all}");
    Ok(())
}

#[test]
fn batches_and_files_go_in_and_results_come_out() {
    run(Setup::default(), async |world| {
        world.serve(&service("echo", |_| {})).await?;
        let skein = Skein::of(world.client().target());
        let folder = tempfile::tempdir()?;
        let file = |name: &str, text: &str| -> Result<String> {
            let path = folder.path().join(name);
            fs::write(&path, text)?;
            Ok(path.display().to_string())
        };
        let lines = file("lines", "one\ntwo\n\nthree\n")?;
        let said = skein.say(&["job", "submit", "echo", "--lines", &lines, "--wait"]).await?;
        ensure!(said.status == 0 && said.lines().len() == 3, "{said:?}");
        ensure!(said.err.contains("3 accepted, 0 refused"), "{said:?}");
        let third = said.lines()[2].to_owned();
        ensure!(skein.say(&["job", "result", &third]).await?.good()? == "three");
        let json =
            file("json", "{\"payload\": {\"a\": 1}, \"token\": \"t\"}\n{\"payload\": \"x\"}\n")?;
        let said = skein.say(&["job", "submit", "echo", "--json-lines", &json, "--wait"]).await?;
        let first = said.clone().good()?.lines().next().unwrap_or_default().to_owned();
        ensure!(skein.say(&["job", "result", &first]).await?.good()? == "{\"a\":1}");
        let bad = file("bad", "{\"payload\": 1}\n{\"load\": 1}\n")?;
        let said = skein.say(&["job", "submit", "echo", "--json-lines", &bad]).await?;
        ensure!(said.sentence()?.contains("line 2"), "{said:?}");
        let copy = skein.clone();
        let piped = tokio::task::spawn_blocking(move || {
            copy.run(&["job", "submit", "echo", "-", "--wait"], "from a pipe")
        });
        ensure!(piped.await??.good()? == "from a pipe");
        let folder = folder.path().join("image");
        let elf = skein_tests::echo_elf()?.display().to_string();
        let said =
            skein.say(&["image", "import", &elf, "--name", "other", "--capacity", "2"]).await?;
        ensure!(said.good()? == "other\n");
        ensure!(!folder.exists());
        Ok(())
    });
}

#[test]
fn errors_are_one_sentence_and_have_an_exit_status() {
    run(Setup::default(), async |world| {
        world.serve(&service("echo", |_| {})).await?;
        let skein = Skein::of(world.client().target());
        for (words, expected) in [
            ("service show nothing", "nothing does not exist"),
            ("job submit nothing --data x", "SERVICE_UNKNOWN"),
            ("job show nothing", "JOB_UNKNOWN"),
            ("vm logs nothing", "MACHINE_UNKNOWN"),
            ("image rm echo", "IMAGE_IN_USE"),
            ("image import /nonexistent", "/nonexistent"),
            ("service create echo --max 7", "SERVICE_EXISTS"),
            ("service create other --image nothing", "IMAGE_UNKNOWN"),
            ("job submit echo --file /nonexistent", "/nonexistent"),
            ("api GET /v1/nothing", "ROUTE_UNKNOWN"),
        ] {
            let words: Vec<&str> = words.split_whitespace().collect();
            let said = skein.say(&words).await?;
            let sentence = said.sentence().with_context(|| format!("{words:?}"))?;
            ensure!(sentence.contains(expected), "{words:?}: {sentence}");
            ensure!(said.out.is_empty(), "{words:?}: {said:?}");
        }
        // A job that was given up.
        let said =
            skein.say(&["job", "submit", "echo", "--wait", "--path", "/?status=404"]).await?;
        ensure!(said.status == 1 && said.err.contains("404"), "{said:?}");
        let said = skein.say(&["call", "echo", "--path", "/?status=404"]).await?;
        ensure!(said.sentence()?.contains("JOB_FAILED"), "{said:?}");
        // What cannot be read at all is a wrong use.
        for words in [&["frobnicate"][..], &["service", "create"], &["up", "--nodes", "0"]] {
            let said = skein.say(words).await?;
            ensure!(said.status == 1 && said.err.starts_with("error: "), "{words:?}: {said:?}");
        }
        let nowhere = skein_api::Target { url: "http://127.0.0.1:9".into(), token: "x".into() };
        let said = Skein::of(&nowhere).say(&["node", "ls"]).await?;
        ensure!(said.sentence()?.contains("127.0.0.1:9"), "{said:?}");
        let said = Skein::within(&["env"]).say(&["node", "ls", "--state", "/nonexistent"]).await?;
        ensure!(said.sentence()?.contains("skein up"), "{said:?}");
        for shell in ["bash", "zsh", "fish"] {
            let script = skein.say(&["completion", shell]).await?.good()?;
            ensure!(script.contains("skein"), "{shell}");
        }
        ensure!(skein.say(&["--version"]).await?.good()?.starts_with("skein "));
        ensure!(skein.say(&["--help"]).await?.good()?.contains("service"));
        Ok(())
    });
}

/// `skein up` with these words in front and behind must fail with one sentence that contains `expected`.
fn refuses(wrapper: &[&str], arguments: &[&str], expected: &str) {
    let (_guard, folder) = state_folder().expect("a folder");
    let mut words = vec!["up", "--accel", "tcg", "--state", folder.as_str()];
    if !arguments.contains(&"--listen") {
        words.extend(["--listen", "127.0.0.1:0"]);
    }
    words.extend(arguments);
    let skein = Skein::within(if wrapper.is_empty() { &["env"] } else { wrapper });
    let said = skein.run(&words, "").expect("it ends");
    let sentence = said.sentence().expect("one sentence");
    assert!(sentence.contains(expected), "{sentence:?} lacks {expected:?}");
}

#[test]
fn without_root_a_cloud_says_what_to_do() {
    // The binary lies where this user may not look: it is carried to a place where he may.
    let binary = skein_tests::skein_binary().expect("the binary");
    let folder = tempfile::Builder::new().prefix("skein-").tempdir_in("/tmp").expect("a folder");
    let copy = folder.path().join("skein");
    fs::copy(binary, &copy).expect("a copy");
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    fs::set_permissions(folder.path(), open).expect("permissions");
    let state = folder.path().join("state").display().to_string();
    let copy = copy.display().to_string();
    // The wrapper appends the real binary, which this shell passes over.
    let script = format!("shift; exec {copy} \"$@\"");
    let user = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"];
    let wrapper: Vec<&str> = user.into_iter().chain(["sh", "-c", &script, "sh"]).collect();
    let words = ["up", "--accel", "tcg", "--listen", "127.0.0.1:0", "--state", &state];
    let said = Skein::within(&wrapper).run(&words, "").expect("it ends");
    let sentence = said.sentence().expect("one sentence");
    assert!(sentence.contains("run as root"), "{sentence}");
}

#[test]
fn without_qemu_a_cloud_says_what_to_install() {
    refuses(&[], &["--qemu", "/nonexistent"], "apt install qemu-system-x86");
    refuses(&[], &["--qemu", "/bin/true"], "is not QEMU");
}

#[test]
fn without_tun_a_cloud_says_what_to_load() {
    let hide = ["unshare", "--mount", "sh", "-c"];
    let empty = "mount -t tmpfs none /dev/net && exec \"$@\"";
    let wrapper: Vec<&str> = hide.into_iter().chain([empty, "sh"]).collect();
    refuses(&wrapper, &[], "modprobe tun");
    let null = "mount --bind /dev/null /dev/net/tun && exec \"$@\"";
    let wrapper: Vec<&str> = hide.into_iter().chain([null, "sh"]).collect();
    refuses(&wrapper, &[], "/dev/net/tun");
}

#[test]
fn a_taken_port_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("its address").to_string();
    refuses(&[], &["--listen", &address], &address);
}

#[test]
fn a_folder_that_another_cloud_holds_is_refused() {
    let (_guard, folder) = state_folder().expect("a folder");
    let cloud = Up::start(&folder, &["--nodes", "1"]).expect("the cloud starts");
    let words = ["up", "--accel", "tcg", "--listen", "127.0.0.1:0", "--state", folder.as_str()];
    let said = Skein::within(&["env"]).run(&words, "").expect("it ends");
    let stopped = cloud.stop();
    let sentence = said.sentence().expect("one sentence");
    assert!(sentence.contains("another cloud"), "{sentence}");
    stopped.expect("the first cloud is not harmed");
}

#[test]
fn a_cloud_that_is_asked_to_stop_leaves_nothing() {
    let (_guard, folder) = state_folder().expect("a folder");
    let cloud = Up::start(&folder, &["--nodes", "3"]).expect("the cloud starts");
    let skein = Skein::of(&cloud.target);
    let elf = skein_tests::echo_elf().expect("an image").display().to_string();
    let prepared = (|| -> Result<()> {
        skein.run(&["image", "import", &elf, "--capacity", "4"], "")?.good()?;
        skein.run(&["service", "create", "echo", "--min", "3"], "")?.good()?;
        skein.run(&["service", "scale", "echo", "--min", "3", "--wait", "3"], "")?.good()?;
        skein.run(&["job", "submit", "echo", "--path", "/?sleep_ms=60000"], "")?.good()?;
        Ok(())
    })();
    let stopped = cloud.stop();
    prepared.expect("a service with three machines");
    stopped.expect("nothing is left");
    assert!(!folder.join("access.json").exists(), "the access file stays");
}

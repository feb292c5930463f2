//! Servers and clients from the distribution: what they do on any site. Bytes and statuses are compared; that they are the same on
//! plain TCP and on the link is seen by running them on both.

use super::On;
use super::site::{End, Site};
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Bytes of the file that is sent about.
const BYTES: usize = 12_000_000;

/// A file of bytes that do not repeat, in an end's folder.
pub(crate) fn data(site: &dyn Site, end: End, name: &str) -> PathBuf {
    let path = site.path(end, name);
    let mut state = 88_172_645_463_325_252u64;
    let bytes: Vec<u8> = (0..BYTES / 8)
        .flat_map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()
        })
        .collect();
    fs::write(&path, bytes).unwrap();
    path
}

pub(crate) fn same(one: &Path, other: &Path) {
    assert!(fs::read(one).unwrap() == fs::read(other).unwrap(), "{} differs", other.display());
}

pub(crate) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Servers give up being root: the folder and the broker's socket are for all.
fn open_to_all(site: &dyn Site) {
    let folder = site.folder(End::Server);
    fs::set_permissions(folder, Permissions::from_mode(0o777)).unwrap();
    fs::set_permissions(folder.join("link.sock"), Permissions::from_mode(0o777)).unwrap();
}

/// Programs that do not run as root, as root: through `setpriv`.
fn as_user<'a>(user: &'a str, words: &[&'a str]) -> Vec<&'a str> {
    let mut all = vec!["setpriv", "--reuid", user, "--regid", user, "--clear-groups"];
    all.extend(words);
    all
}

pub(crate) fn iperf3(site: &dyn Site, on: On) {
    for extra in [&[][..], &["-R"], &["-P", "4"], &["-Z"], &["-R", "-P", "4", "-Z"]] {
        let port = site.port();
        let text = port.to_string();
        let mut server = site.serve(on, port, &["iperf3", "-s", "-1", "-p", &text]);
        let mut words = vec!["iperf3", "-c", site.address(), "-p", &text, "-n", "150M"];
        words.extend(extra);
        site.run(End::Client, on, &words);
        assert!(server.0.wait().unwrap().success(), "{extra:?} on {on:?}");
    }
}

/// Fetches the file in several ways, more than once over one connection, and small ones in between.
fn fetch(site: &dyn Site, on: On, port: u16) {
    let address = site.address();
    let url = |name: &str| format!("http://{address}:{port}/{name}");
    let (big, small) = (url("data"), url("small"));
    let words = ["curl", "-sf", &big, &small, &big, "-o", "a", "-o", "b", "-o", "c"];
    site.run(End::Client, on, &words);
    let original = site.path(End::Server, "data");
    for name in ["a", "c"] {
        same(&original, &site.path(End::Client, name));
    }
    same(&site.path(End::Server, "small"), &site.path(End::Client, "b"));
    site.run(End::Client, on, &["wget", "-q", "-O", "d", &big]);
    same(&original, &site.path(End::Client, "d"));
    // Parts of a file, and many questions over one connection.
    let code = format!(
        "import http.client\nc=http.client.HTTPConnection('{address}',{port})\n\
         for i in range(300):\n c.request('GET','/small'); assert c.getresponse().read()==b'hello\\n'\n\
         c.request('GET','/data',headers={{'Range':'bytes=1000-900000'}})\n\
         assert c.getresponse().read()==open('a','rb').read()[1000:900001]\n"
    );
    site.run(End::Client, on, &["python3", "-c", &code]);
}

/// What a web server serves, and its configuration.
fn web_site(site: &dyn Site, conf: &str) -> PathBuf {
    data(site, End::Server, "data");
    fs::write(site.path(End::Server, "small"), "hello\n").unwrap();
    open_to_all(site);
    let path = site.path(End::Server, "conf");
    fs::write(&path, conf).unwrap();
    path
}

pub(crate) fn nginx(site: &dyn Site, on: On) {
    let (address, port, folder) = (site.address(), site.port(), text(site.folder(End::Server)));
    let conf = web_site(
        site,
        &format!(
            "daemon off; user root; worker_processes 2; pid {folder}/pid; error_log {folder}/err;\n\
             events {{}}\nhttp {{ access_log off; sendfile on; tcp_nopush on; keepalive_requests 10000;\n\
             server {{ listen {address}:{port} deferred; root {folder}; }} }}\n"
        ),
    );
    let _server = site.serve(on, port, &["nginx", "-c", text(&conf), "-p", folder, "-e", "err"]);
    fetch(site, on, port);
}

pub(crate) fn apache(site: &dyn Site, on: On) {
    let (address, port, folder) = (site.address(), site.port(), text(site.folder(End::Server)));
    let modules = "/usr/lib/apache2/modules";
    let conf = web_site(
        site,
        &format!(
            "ServerName localhost\nServerRoot {folder}\nListen {address}:{port}\nPidFile {folder}/pid\n\
             ErrorLog {folder}/err\nUser www-data\nGroup www-data\nDocumentRoot {folder}\nMutex posixsem\n\
             LoadModule mpm_event_module {modules}/mod_mpm_event.so\n\
             LoadModule authz_core_module {modules}/mod_authz_core.so\n\
             EnableSendfile On\nKeepAlive On\nMaxKeepAliveRequests 0\n"
        ),
    );
    let _server = site.serve(on, port, &["apache2", "-D", "FOREGROUND", "-f", text(&conf)]);
    fetch(site, on, port);
}

pub(crate) fn redis(site: &dyn Site, on: On) {
    let (address, port) = (site.address(), site.port());
    let number = port.to_string();
    let mut words = vec!["redis-server", "--port", &number, "--save", "", "--bind", address];
    words.extend(["--protected-mode", "no"]);
    let _server = site.serve(on, port, &words);
    let bench = ["redis-benchmark", "-h", address, "-p", &number, "-q", "-n", "10000", "-c", "20"];
    for extra in [&["-t", "set,get,lpush,lrange_100"][..], &["-t", "set", "-P", "16", "-d", "3000"]]
    {
        let words: Vec<_> = bench.iter().chain(extra).copied().collect();
        let out = site.run(End::Client, on, &words);
        assert!(!out.to_lowercase().contains("error"), "{out}");
    }
    let script = "for i in $(seq 500); do echo set k$i v$i; echo get k$i; done; echo bgsave";
    let line = format!("({script}) | redis-cli -h {address} -p {port}");
    let answers = site.shell(End::Client, on, &line);
    let values = answers.lines().filter(|line| line.starts_with('v')).count();
    assert_eq!(values, 500, "{answers}");
}

pub(crate) fn ssh_and_scp(site: &dyn Site, on: On) {
    let data = data(site, End::Server, "data");
    let (address, port, folder) = (site.address(), site.port(), text(site.folder(End::Server)));
    fs::create_dir_all("/run/sshd").unwrap();
    for name in ["host", "user"] {
        let words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", name];
        site.run(End::Server, On::Tcp, &words);
    }
    let (key, copy) = (site.path(End::Server, "user"), site.path(End::Client, "user"));
    if key != copy {
        fs::copy(key, copy).unwrap();
    }
    let conf = format!(
        "Port {port}\nListenAddress {address}\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/user.pub\n\
         PidFile {folder}/pid\nPermitRootLogin yes\nStrictModes no\nUsePAM no\nSubsystem sftp internal-sftp\n"
    );
    let path = site.path(End::Server, "conf");
    fs::write(&path, conf).unwrap();
    let words = ["/usr/sbin/sshd", "-D", "-f", text(&path), "-E", "log"];
    let _server = site.serve(on, port, &words);
    let options = "-F none -i user -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR";
    let shell = |line: String| site.shell(End::Client, on, &line);
    let sum = shell(format!("ssh {options} -p {port} root@{address} 'md5sum < {folder}/data'"));
    assert_eq!(sum, site.shell(End::Server, On::Tcp, "md5sum < data"));
    shell(format!("scp {options} -P {port} root@{address}:{folder}/data got"));
    same(&data, &site.path(End::Client, "got"));
    shell(format!("scp {options} -P {port} got root@{address}:{folder}/back"));
    same(&data, &site.path(End::Server, "back"));
}

pub(crate) fn vsftpd_with_two_clients(site: &dyn Site, on: On) {
    fs::create_dir(site.path(End::Server, "files")).unwrap();
    let data = data(site, End::Server, "files/data");
    fs::set_permissions(site.folder(End::Server), Permissions::from_mode(0o755)).unwrap();
    let (address, port, folder) = (site.address(), site.port(), text(site.folder(End::Server)));
    let conf = format!(
        "listen=YES\nlisten_address={address}\nlisten_port={port}\nanonymous_enable=YES\n\
         anon_root={folder}/files\nno_anon_password=YES\nsecure_chroot_dir={folder}/files\nbackground=NO\n"
    );
    let path = site.path(End::Server, "conf");
    fs::write(&path, conf).unwrap();
    let _server = site.serve(on, port, &["vsftpd", text(&path)]);
    let url = format!("ftp://{address}:{port}/data");
    site.run(End::Client, on, &["curl", "-sf", "-o", "got", &url]);
    same(&data, &site.path(End::Client, "got"));
    let talk = "printf 'user anonymous x\\nbinary\\nget data\\nquit\\n'";
    site.shell(End::Client, on, &format!("{talk} | ftp -n -p {address} {port}"));
    same(&data, &site.path(End::Client, "data"));
}

pub(crate) fn telnet(site: &dyn Site, on: On) {
    let (address, port) = (site.address(), site.port());
    let code = format!(
        "import socket\nl=socket.create_server(('{address}',{port}))\ns,_=l.accept()\n\
         for line in s.makefile('rb'):\n s.sendall(b'heard '+line)\n"
    );
    let _server = site.serve(on, port, &["python3", "-c", &code]);
    let ask = "i=0; while [ $i -lt 40 ]; do i=$((i+1)); echo line $i; sleep 0.01; done; sleep 0.3";
    let line = format!("({ask}) | telnet {address} {port} 2>/dev/null || true");
    let text = site.shell(End::Client, on, &line);
    for i in 1..=40 {
        assert!(text.contains(&format!("heard line {i}")), "line {i} on {on:?}: {text}");
    }
}

pub(crate) fn node(site: &dyn Site, on: On) {
    let data = data(site, End::Server, "data");
    let (address, port) = (site.address(), site.port());
    let serve = format!(
        "require('http').createServer((q,a)=>require('fs').createReadStream('data').pipe(a)).listen({port},'{address}')"
    );
    let _server = site.serve(on, port, &["node", "-e", &serve]);
    let fetch = format!(
        "require('http').get('http://{address}:{port}/',a=>a.pipe(require('fs').createWriteStream('got')))"
    );
    site.run(End::Client, on, &["node", "-e", &fetch]);
    same(&data, &site.path(End::Client, "got"));
}

pub(crate) fn postgresql_with_pgbench(site: &dyn Site, on: On) {
    let versions = fs::read_dir("/usr/lib/postgresql").unwrap().flatten();
    let programs = versions.map(|entry| entry.path().join("bin")).max().unwrap();
    let program = |name: &str| text(&programs.join(name)).to_owned();
    open_to_all(site);
    let (initdb, postgres) = (program("initdb"), program("postgres"));
    let words = [&*initdb, "-D", "base", "-A", "trust", "--no-sync"];
    site.run(End::Server, On::Tcp, &as_user("postgres", &words));
    let (address, port) = (site.address(), site.port());
    let number = port.to_string();
    // Its clients come from other addresses too.
    let rules = site.path(End::Server, "base/pg_hba.conf");
    fs::write(rules, "host all all 0.0.0.0/0 trust\n").unwrap();
    let listen = format!("listen_addresses={address}");
    let sockets = format!("unix_socket_directories={}", text(site.folder(End::Server)));
    let mut words = vec![&*postgres, "-D", "base", "-p", &number];
    words.extend(["-c", &listen, "-c", &sockets, "-c", "fsync=off"]);
    // Killed after all, with its test, it leaves no file in /dev/shm.
    words.extend(["-c", "dynamic_shared_memory_type=mmap"]);
    let _server = super::Orderly(site.serve(on, port, &as_user("postgres", &words)));
    let ask = |program: &str, extra: &[&str]| {
        let mut words = vec![program, "-h", address, "-p", &number, "-U", "postgres"];
        words.extend(extra);
        site.run(End::Client, on, &words)
    };
    super::wait("the database", || {
        let words = ["pg_isready", "-q", "-h", address, "-p", &number];
        let command = site.command(End::Client, On::Tcp, &words);
        (super::site::output(command).1 == Some(0)).then_some(())
    });
    ask("pgbench", &["-i", "-q", "postgres"]);
    for extra in
        [&["-S", "-t", "500", "-c", "4", "postgres"][..], &["-t", "100", "-c", "4", "postgres"]]
    {
        let out = ask("pgbench", extra);
        assert!(out.contains("number of failed transactions: 0"), "{out}");
    }
    let rows = "select repeat(i::text, 200) from generate_series(1, 5000) i";
    let expect: String = (1..=5000).map(|i: u32| i.to_string().repeat(200) + "\n").collect();
    assert!(ask("psql", &["-At", "-c", rows, "postgres"]) == expect, "rows on {on:?}");
}

pub(crate) fn mariadb_with_mysqlslap(site: &dyn Site, on: On) {
    let folder = text(site.folder(End::Server));
    let at = |name: &str, value: &str| format!("--{name}={folder}/{value}");
    let (base, socket, pid) = (at("datadir", "base"), at("socket", "sock"), at("pid-file", "pid"));
    let mut install = vec!["mysql_install_db", "--no-defaults", "--user=root", &base];
    install.push("--auth-root-authentication-method=normal");
    site.run(End::Server, On::Tcp, &install);
    let (address, port) = (site.address(), site.port());
    let (number, bind) = (format!("--port={port}"), format!("--bind-address={address}"));
    let mut words = vec!["mariadbd", "--no-defaults", "--user=root", &base, &socket, &pid];
    words.extend([&*number, &*bind, "--skip-name-resolve"]);
    let _server = site.serve(on, port, &words);
    let grant = "create user t@'%'; grant all on *.* to t@'%'; drop user if exists ''@localhost";
    let root = ["mysql", "--no-defaults", &socket, "-u", "root", "-e", grant];
    site.run(End::Server, On::Tcp, &root);
    let client = |on: On, program: &str, extra: &[&str]| {
        let mut words = vec![program, "--no-defaults", "-h", address, "-u", "t", &number];
        words.extend(extra);
        site.run(End::Client, on, &words)
    };
    let slap = ["--concurrency=8", "--auto-generate-sql", "--number-of-queries=1000"];
    client(on, "mysqlslap", &slap);
    let rows = "select repeat(help_topic_id, 300) from mysql.help_topic order by 1";
    let ask = |on: On| client(on, "mysql", &["-N", "-e", rows]);
    assert_eq!(ask(on), ask(On::Tcp));
}

pub(crate) fn java(site: &dyn Site, on: On) {
    let data = data(site, End::Server, "data");
    let (address, port) = (site.address(), site.port());
    let number = port.to_string();
    fs::write(site.path(End::Server, "Serve.java"), SERVE_JAVA).unwrap();
    fs::write(site.path(End::Client, "Fetch.java"), FETCH_JAVA).unwrap();
    let _server = site.serve(on, port, &["java", "Serve.java", address, &number]);
    site.run(End::Client, on, &["java", "Fetch.java", address, &number, &BYTES.to_string()]);
    same(&data, &site.path(End::Client, "got"));
}

/// Answers each line with the file, through channels that do not block.
const SERVE_JAVA: &str = r#"
import java.net.*; import java.nio.*; import java.nio.channels.*; import java.nio.file.*;
public class Serve {
  public static void main(String[] a) throws Exception {
    byte[] file = Files.readAllBytes(Path.of("data"));
    Selector s = Selector.open();
    ServerSocketChannel l = ServerSocketChannel.open();
    l.bind(new InetSocketAddress(a[0], Integer.parseInt(a[1])));
    l.configureBlocking(false);
    l.register(s, SelectionKey.OP_ACCEPT);
    while (true) {
      s.select();
      for (SelectionKey k : s.selectedKeys()) {
        if (k.isAcceptable()) {
          SocketChannel c = l.accept();
          c.configureBlocking(false);
          c.register(s, SelectionKey.OP_READ);
        } else if (k.isReadable()) {
          int n = ((SocketChannel) k.channel()).read(ByteBuffer.allocate(100));
          if (n < 0) { k.channel().close(); continue; }
          k.attach(ByteBuffer.wrap(file));
          k.interestOps(SelectionKey.OP_WRITE);
        } else if (k.isWritable()) {
          ByteBuffer b = (ByteBuffer) k.attachment();
          ((SocketChannel) k.channel()).write(b);
          if (!b.hasRemaining()) k.interestOps(SelectionKey.OP_READ);
        }
      }
      s.selectedKeys().clear();
    }
  }
}
"#;

const FETCH_JAVA: &str = r#"
import java.io.*; import java.net.*; import java.nio.file.*;
public class Fetch {
  public static void main(String[] a) throws Exception {
    long size = Long.parseLong(a[2]);
    try (Socket s = new Socket(a[0], Integer.parseInt(a[1]))) {
      for (int i = 0; i < 3; i++) {
        s.getOutputStream().write("go\n".getBytes());
        byte[] got = s.getInputStream().readNBytes((int) size);
        Files.write(Path.of("got"), got);
      }
    }
  }
}
"#;

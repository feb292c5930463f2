# Sourced by ./run and ./test: installs what is missing from the distribution, and says what. Installs nothing from
# anywhere else.

say() { printf '\033[1m==>\033[0m %s\n' "$*" >&2; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

# Runs a command as root.
as_root() {
  if [ "$(id -u)" = 0 ]; then
    "$@"
  elif command -v sudo >/dev/null; then
    sudo --preserve-env=SKEIN_STATE,SKEIN_LOG "$@"
  else
    die "this needs root (namespaces, taps, packages) and sudo is not installed: run it as root"
  fi
}

need_platform() {
  [ "$(uname -s)" = Linux ] && [ "$(uname -m)" = x86_64 ] ||
    die "Skein runs on x86-64 Linux; this is $(uname -s) on $(uname -m)"
}

need_rust() {
  command -v cargo >/dev/null || die "Rust is not installed: see https://rustup.rs, then come back"
  local version wanted=1.95
  version=$(rustc --version | cut -d' ' -f2)
  [ "$(printf '%s\n' "$wanted" "${version%%-*}" | sort -V | head -n1)" = "$wanted" ] ||
    die "Rust $version is too old: $wanted or later is needed (rustup update stable)"
}

# need_packages COMMAND=PACKAGE...: installs the packages whose command is not there. An absolute path in the place of the
# command is a file that must exist.
need_packages() {
  local pair missing=()
  for pair in "$@"; do
    case ${pair%%=*} in
      /*) [ -e "${pair%%=*}" ] || missing+=("${pair#*=}") ;;
      *) command -v "${pair%%=*}" >/dev/null || missing+=("${pair#*=}") ;;
    esac
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  command -v apt-get >/dev/null ||
    die "these are missing and this is no Debian or Ubuntu to install them on: ${missing[*]}"
  say "installing ${missing[*]} (apt-get)"
  # Through env, because sudo drops what it does not know.
  as_root env DEBIAN_FRONTEND=noninteractive apt-get update -qq
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "${missing[@]}" >&2
}

need_tun() {
  [ -c /dev/net/tun ] || as_root modprobe tun 2>/dev/null || true
  [ -c /dev/net/tun ] ||
    die "/dev/net/tun is missing: load the module (modprobe tun), or give the container that device"
}

# What building and running take. gcc links, and compiles SQLite; what it links against and its headers are libc6-dev, which
# it only recommends; python3 makes the data of the search service.
need_build() {
  need_platform
  need_rust
  need_packages gcc=gcc /usr/include/stdio.h=libc6-dev qemu-system-x86_64=qemu-system-x86 python3=python3
  python3 -m pip --version >/dev/null 2>&1 || need_packages pip3=python3-pip
  need_tun
}

# shellcheck shell=bash
# Debian packages of other suites than this machine's own, by a private apt configuration: nothing of the machine's
# apt is changed and nothing is installed. Sourced; needs $CACHE_DIR.
# shellcheck disable=SC2016 # apt-get indextargets has variables of its own.

DEBIAN_KEYRING=/usr/share/keyrings/debian-archive-keyring.gpg
APT_WAIT_S=900

# debian_mirror: the base address of the Debian archive that this machine itself uses.
debian_mirror() {
  local mirror
  mirror=$(apt-get indextargets --format '$(LABEL)|$(CREATED_BY)|$(REPO_URI)' |
    awk -F'|' '$1 == "Debian" && $2 == "Packages" { print $3; exit }')
  if [ -z "$mirror" ]; then # No lists were fetched yet: read the addresses themselves.
    mirror=$(apt-get indextargets --format '$(CREATED_BY)|$(REPO_URI)' |
      awk -F'|' '$1 == "Packages" && $2 ~ /\/debian\/?$/ { print $2; exit }')
  fi
  [ -n "$mirror" ] || die "this machine's apt has no Debian archive among its sources"
  printf '%s\n' "${mirror%/}"
}

# debian_apt SUITE TOOL ARGS...: apt-get or apt-cache that knows only SUITE.
debian_apt() {
  local suite=$1 tool=$2 home=$CACHE_DIR/apt/$1
  shift 2
  timeout "$APT_WAIT_S" "$tool" -q \
    -o Dir::Etc::sourcelist="$home/sources.list" -o Dir::Etc::sourceparts=/dev/null \
    -o Dir::State::lists="$home/lists" -o Dir::Cache="$home/cache" \
    -o APT::Sandbox::User=root -o Acquire::Languages=none -o Acquire::Retries=3 "$@"
}

# debian_sources SUITE DIR: writes apt's files for SUITE into DIR.
debian_sources() {
  local suite=$1 home=$2 mirror signed=
  mirror=$(debian_mirror)
  mkdir -p "$home/lists/partial" "$home/cache/archives/partial"
  [ ! -e "$DEBIAN_KEYRING" ] || signed="[signed-by=$DEBIAN_KEYRING] "
  printf 'deb %s%s %s main\n' "$signed" "$mirror" "$suite" >"$home/sources.list"
}

# debian_suite SUITE: fetches the suite's package lists.
debian_suite() {
  debian_sources "$1" "$CACHE_DIR/apt/$1"
  debian_apt "$1" apt-get update >&2
}

# debian_depends SUITE PACKAGE: what PACKAGE depends on, first level, one name a line.
debian_depends() {
  debian_apt "$1" apt-cache depends --no-recommends --no-suggests --no-conflicts --no-breaks --no-replaces \
    --no-enhances "$2" | awk '$1 == "Depends:" { print $2 }'
}

# debian_unpack SUITE DIR PACKAGE...: downloads the packages and unpacks them into DIR.
debian_unpack() {
  local suite=$1 dir=$2 downloads package
  shift 2
  downloads=$(mktemp -d "$CACHE_DIR/download.XXXXXX")
  (cd "$downloads" && debian_apt "$suite" apt-get download "$@" >&2)
  mkdir -p "$dir"
  for package in "$downloads"/*.deb; do
    dpkg-deb -x "$package" "$dir"
  done
  rm -rf "$downloads"
}

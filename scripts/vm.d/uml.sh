# shellcheck shell=bash
# User Mode Linux: a kernel that runs as a process on this machine's root file system and boots in under a second.
# Sourced by scripts/vm, whose globals it reads.
# shellcheck disable=SC2153,SC2154

UML_BUILD_WAIT_S=5400

# uml_prepare KERNEL: sets uml_kernel to the kernel's file, building it if there is none.
uml_prepare() {
  local version=$1 config stamp
  if [ -n "${BLOCKFERRY_KERNELS:-}" ]; then
    uml_kernel=$BLOCKFERRY_KERNELS/linux-$version
    [ -x "$uml_kernel" ] || die "\$BLOCKFERRY_KERNELS is set, but there is no $uml_kernel"
    return
  fi
  config=$PARTS/../../kernels/uml-$version.config
  stamp=$(sha256sum "$config" | cut -c1-12)
  uml_kernel=$CACHE_DIR/kernels/uml-$version-$stamp
  [ -x "$uml_kernel" ] || uml_build "$version" "$config"
}

# uml_build KERNEL CONFIG: builds Debian's kernel source for ARCH=um into $uml_kernel; one build at a time.
uml_build() {
  local version=$1 config=$2 tree
  [ "$(uname -m)" = x86_64 ] || die "User Mode Linux needs an x86_64 machine, this is $(uname -m)"
  "$PARTS/../setup" uml
  mkdir -p "$CACHE_DIR/kernels"
  exec 9>"$CACHE_DIR/kernels/lock"
  flock -w "$UML_BUILD_WAIT_S" 9 || die "another build of a kernel did not end"
  if [ ! -x "$uml_kernel" ]; then
    echo "vm: building User Mode Linux $version once, from Debian's source (about 15 minutes of one core)" >&2
    tree=$CACHE_DIR/build-$version
    rm -rf "$tree"
    uml_source "$version" "$tree"
    uml_make "$tree" "$config"
    strip -o "$uml_kernel.new" "$tree/linux"
    mv "$uml_kernel.new" "$uml_kernel"
    rm -rf "$tree"
  fi
  exec 9>&-
}

# uml_source KERNEL TREE: Debian's kernel source, unpacked into TREE.
uml_source() {
  local suite
  case $1 in 7.3) suite=trixie-backports ;; 6.1) suite=bookworm ;; esac
  debian_suite "$suite"
  debian_unpack "$suite" "$2/package" "linux-source-$1"
  tar -C "$2" --strip-components=1 -xf "$2/package/usr/src/linux-source-$1.tar.xz"
  rm -rf "$2/package"
}

uml_make() {
  local tree=$1 config=$2 log=$1/build.log
  cp "$config" "$tree/.config"
  if ! { make -C "$tree" ARCH=um olddefconfig && make -C "$tree" ARCH=um -j"$(nproc)" linux; } >"$log" 2>&1 9>&-; then
    tail -n 30 "$log" >&2
    die "the kernel did not build; all of its output is in $log"
  fi
}

# uml_run KERNEL: boots it, runs the command, exits with its status.
uml_run() {
  local options=()
  # 7.3 runs its processes under seccomp, about ten times faster than the ptrace of 6.1.
  case $1 in 7.3) options=(seccomp=on ncpus=1) ;; esac
  [ -n "$cpu" ] || cpu=$(last_cpu)
  cp "$PARTS/uml-init.sh" "$run_dir/init"
  TMPDIR=$(uml_memory_dir) timeout -k 5 "$seconds" taskset -c "$cpu" "$uml_kernel" "${options[@]}" \
    mem="$memory" uml_dir="$run_dir" root=none rootfstype=hostfs rootflags=/ ro init="$run_dir/init" \
    con=null con0=null,fd:1 console=tty0 random.trust_bootloader=1 panic=-1 scsi_debug.add_host=0 hostname=uml \
    >"$run_dir/console" 2>&1 </dev/null &
  guest_pid=$!
  follow "$guest_pid"
}

# last_cpu: the last of the CPUs that we may run on. One, since hand-overs between CPUs are slow in User Mode Linux.
last_cpu() {
  taskset -pc $$ | sed 's/.*[ ,-]//'
}

# uml_memory_dir: where the guest's memory is mapped from: /dev/shm, unless that is too small (containers have 64 MiB).
uml_memory_dir() {
  local need_kib=${memory%[MG]} have_kib
  case $memory in *M) need_kib=$((need_kib << 10)) ;; *G) need_kib=$((need_kib << 20)) ;; esac
  have_kib=$(df -k --output=avail /dev/shm 2>/dev/null | tail -n1 || echo 0)
  if [ "$have_kib" -gt "$need_kib" ]; then echo /dev/shm; else echo "$run_dir"; fi
}

# shellcheck shell=bash
# QEMU: unmodified Debian kernels with two CPUs on this machine's root file system (read-only, with memory overlays), booted
# by virtme-ng. Sourced by scripts/vm, whose globals it reads.
# shellcheck disable=SC2153,SC2154

QEMU_CPUS=2
QEMU_BOOTS_MAX=3
KVM_PROBE_S=40
GUEST_MODULES="fuse loop ext4 xfs ublk_drv null_blk nbd"
PREPARE_WAIT_S=1800

# qemu_prepare KERNEL: sets qemu_kernel to the kernel's image, and gets it, QEMU and virtme-ng if they are missing.
qemu_prepare() {
  "$PARTS/../setup" qemu
  exec 9>"$CACHE_DIR/qemu.lock"
  flock -w "$PREPARE_WAIT_S" 9 || die "another preparation of QEMU did not end"
  PATH=$CACHE_DIR/venv/bin:$PATH
  [ -x "$CACHE_DIR/venv/bin/vng" ] || qemu_tools
  qemu_kernel=$CACHE_DIR/debian/$1/vmlinuz
  [ -e "$qemu_kernel" ] || qemu_fetch "$1"
  qemu_kvm=$CACHE_DIR/kvm-$(uname -r)
  [ -s "$qemu_kvm" ] || probe_kvm
  exec 9>&-
}

qemu_tools() {
  echo "vm: installing virtme-ng into $CACHE_DIR/venv" >&2
  rm -rf "$CACHE_DIR/venv"
  /usr/bin/python3 -m venv "$CACHE_DIR/venv"
  timeout 600 "$CACHE_DIR/venv/bin/pip" install --quiet --disable-pip-version-check virtme-ng >&2
}

# qemu_fetch KERNEL: Debian's binary kernel and its modules, unpacked but not installed.
qemu_fetch() {
  local suite home=$CACHE_DIR/debian/$1 packages version
  case $1 in 7.3) suite=trixie-backports ;; 6.1) suite=bookworm ;; esac
  echo "vm: fetching Debian's kernel $1 of $suite into $home" >&2
  debian_suite "$suite"
  mapfile -t packages < <(kernel_packages "$suite")
  [ ${#packages[@]} -gt 0 ] || die "$suite has no kernel package"
  [[ ${packages[*]} == *-$1.* ]] || die "the kernel of $suite is not $1: ${packages[*]}"
  rm -rf "$home"
  debian_unpack "$suite" "$home" "${packages[@]}"
  # virtme-ng looks for lib/modules in the folders above the image.
  [ -d "$home/lib" ] || ln -s usr/lib "$home/lib"
  version=$(basename "$home"/lib/modules/*)
  depmod -b "$home" "$version" 2>/dev/null
  ln "$(find "$home/boot" "$home/lib/modules/$version" -maxdepth 1 -name 'vmlinuz*' 2>/dev/null | head -n1)" "$home/vmlinuz"
}

# kernel_packages SUITE: the packages that hold the kernel and its modules. Newer releases have one for each.
kernel_packages() {
  local image parts
  image=$(debian_depends "$1" linux-image-amd64 | grep '^linux-image-[0-9]')
  parts=$(debian_depends "$1" "$image" | grep -E '^linux-(binary|modules)-[0-9]' || true)
  printf '%s\n' "${parts:-$image}"
}

# probe_kvm: remembers whether a guest lives under KVM. A /dev/kvm that opens says little: some nested hosts cannot run one.
probe_kvm() {
  local answer=no probe
  if [ -w /dev/kvm ]; then
    probe=$(mktemp -d "$CACHE_DIR/probe.XXXXXX")
    timeout -k 5 "$KVM_PROBE_S" vng --run "$qemu_kernel" --cpus 1 --memory 1G --user root --rwdir="$probe" \
      -- "echo yes > $probe/answer" >"$probe/log" 2>&1 </dev/null 9>&- || true
    answer=$(cat "$probe/answer" 2>/dev/null || echo no)
    rm -rf "$probe"
  fi
  printf '%s\n' "$answer" >"$qemu_kvm"
}

# qemu_run KERNEL: boots it, runs the command, exits with its status. A boot that fails before the command began is repeated:
# an emulated machine is lost now and then while its kernel starts.
qemu_run() {
  local boot
  for boot in $(seq "$QEMU_BOOTS_MAX"); do
    qemu_boot &
    guest_pid=$!
    while [ ! -e "$run_dir/answer/started" ] && kill -0 "$guest_pid" 2>/dev/null; do
      sleep 0.2
    done
    [ ! -e "$run_dir/answer/started" ] || break
    echo "vm: boot $boot of Debian's kernel $1 under QEMU failed" >&2
  done
  follow "$guest_pid"
}

qemu_boot() {
  local options=(--cpus "$QEMU_CPUS" --memory "$memory" --user root --overlay-rwdir="$HOME" --overlay-rwdir="$PWD") folder
  [ "$(cat "$qemu_kvm")" = yes ] || options+=(--disable-kvm)
  while IFS= read -r folder; do
    options+=(--rwdir="$folder")
  done <"$run_dir/writable"
  exec timeout -k 5 "$seconds" vng --verbose --run "$qemu_kernel" "${options[@]}" \
    -- "modprobe -qa $GUEST_MODULES; bash $run_dir/enter $run_dir" >"$run_dir/console" 2>&1 </dev/null
}

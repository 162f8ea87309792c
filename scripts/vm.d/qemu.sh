# shellcheck shell=bash
qemu_prepare() { die "not yet"; }

#!/bin/bash
# The first process of a User Mode Linux guest, started as RUN_DIR/init (scripts/vm wrote RUN_DIR): a memory overlay over the
# host's root, the usual file systems, then the command (enter.sh); then the guest is over.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
run_dir=$(dirname "$0")
root=/mnt/root

mount -t tmpfs -o mode=755,size=75% tmpfs /mnt
mkdir /mnt/upper /mnt/work $root
mount -t overlay -o lowerdir=/,upperdir=/mnt/upper,workdir=/mnt/work overlay $root

mount -t proc proc $root/proc
mount -t sysfs sysfs $root/sys
mount -t cgroup2 cgroup2 $root/sys/fs/cgroup
mount -t configfs configfs $root/sys/kernel/config
mount -t devtmpfs devtmpfs $root/dev
mkdir -p $root/dev/pts $root/dev/shm
mount -t devpts devpts $root/dev/pts
mount -t tmpfs -o mode=1777,size=75% tmpfs $root/dev/shm
mount -t tmpfs -o mode=755 tmpfs $root/run
ln -sfn /proc/self/fd $root/dev/fd
for link in 0:stdin 1:stdout 2:stderr; do
  ln -sfn "/proc/self/fd/${link%%:*}" "$root/dev/${link##*:}"
done
ip link set lo up

# hostfs shows the host's folders as they are, and writes through.
while IFS= read -r folder; do
  mkdir -p "$root$folder"
  mount -t hostfs -o "$folder" none "$root$folder"
done <"$run_dir/writable"

chroot $root /bin/bash "$run_dir/enter" "$run_dir"
echo o >$root/proc/sysrq-trigger
sleep 5

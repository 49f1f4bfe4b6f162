#!/bin/sh
# First program of the test guest. Prints GUEST-READY on the serial console and then takes commands there, one a line.
#
#   guest.warm        stop before the disks are looked at, print GUEST-WARM and wait for a line with the time:
#                     here the guest's state is saved, and restored later with other disks
#   guest.disks=N     wait until N disks are there
#   guest.run=BASE64  run this script, then power off, instead of taking commands
export PATH=/bin HOME=/ TERM=dumb

mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs tmp /tmp
dmesg -n 1
exec </dev/ttyS0 >/dev/ttyS0 2>&1
stty -echo -onlcr

word() { sed -n "s/.*guest\.$1=\([^ ]*\).*/\1/p" /proc/cmdline; }

load bus
if grep -q guest.warm /proc/cmdline; then
    echo GUEST-WARM
    read -r now
    date -s "@$now" >/dev/null
fi
load devices

# virtio disks are there once their driver is loaded; SCSI disks are found in the background.
tries=0
while [ "$(ls /sys/block | grep -c '^[sv]d')" -lt "$(word disks)0" ] && [ $tries -lt 500 ]; do
    [ "$(ls /sys/block | grep -c '^[sv]d')" -ge "$(word disks)" ] && break
    usleep 20000
    tries=$((tries + 1))
done

# Disks by serial number, whatever order they were found in.
mkdir -p /disk
for sys in /sys/block/[sv]d*; do
    [ -e "$sys" ] || continue
    serial=$(cat "$sys/serial" 2>/dev/null)
    [ -n "$serial" ] || serial=$(tail -c +5 "$sys/device/vpd_pg80" 2>/dev/null | tr -d ' \0')
    [ -n "$serial" ] && ln -sf "/dev/${sys##*/}" "/disk/$serial"
done

if [ -x /bin/qemu-ga ]; then
    mkdir -p /dev/virtio-ports /var/run
    for sys in /sys/class/virtio-ports/*; do
        [ -s "$sys/name" ] && ln -sf "/dev/${sys##*/}" "/dev/virtio-ports/$(cat "$sys/name")"
    done
    qemu-ga -d -p /dev/virtio-ports/org.qemu.guest_agent.0 -f /tmp/qemu-ga.pid -t /tmp -l /tmp/qemu-ga.log
fi

run=$(word run)
if [ -n "$run" ]; then
    echo "$run" | base64 -d >/tmp/run
    sh /tmp/run </dev/null
    echo "GUEST-RUN-END $?"
    off
fi

echo GUEST-READY
while :; do sh /console; done

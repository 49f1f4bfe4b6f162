# Takes commands on the serial console. `r ID BASE64` runs a script between two marks that a harness can tell from
# everything else on the console; any other line is run as it is.
r() {
    echo "GUEST-BEGIN $1"
    echo "$2" | base64 -d >"/tmp/command.$1"
    sh "/tmp/command.$1" </dev/null
    echo "GUEST-END $1 $?"
}
while read -r line; do eval "$line"; done
usleep 100000

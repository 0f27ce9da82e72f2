# sshfs, with an sshd that has a key and a configuration of its own.
# shellcheck shell=bash

# shellcheck disable=SC2034  # used by peer
programs=(sshfs=sshfs /usr/sbin/sshd=openssh-server ssh-keygen=openssh-client)

version() { sshfs --version 2>&1 | sed -n 's/^SSHFS version //p'; }

servers() {
    mkdir -p "$1/files" /run/sshd
    ssh-keygen -q -t ed25519 -N '' -f "$1/host"
    ssh-keygen -q -t ed25519 -N '' -f "$1/user"
    cat >"$1/sshd_config" <<EOF
ListenAddress $HOST:2022
HostKey $1/host
AuthorizedKeysFile $1/user.pub
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
PermitRootLogin prohibit-password
Subsystem sftp internal-sftp
EOF
    started "$1/servers.pids" /usr/sbin/sshd -D -f "$1/sshd_config" -E "$1/sshd.log"
    answers() { (exec 3<>"/dev/tcp/$HOST/2022") 2>/dev/null; }
    wait_for 10 answers || die "its sshd does not start: $(tail -n 1 "$1/sshd.log")"
}

client() {
    started "$1/client-$2.pids" sshfs -f -p 2022 \
        -o "IdentityFile=$1/user,StrictHostKeyChecking=no,UserKnownHostsFile=/dev/null,LogLevel=ERROR" \
        "$(id -un)@$HOST:$1/files" "$3"
}

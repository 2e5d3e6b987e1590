# A compute service beside the cloud, for `MG_CLOUD_NOVA=1 stack up`: Placement, Nova, Glance, Neutron's API, and a libvirtd of its own that
# drives QEMU without KVM. Read by ../stack, whose words it uses.
#
# Nova's four services are one process, as Cinder's are, and for the same reasons. Neutron is its API alone: nothing is ever bound to a
# network, but Nova asks for ports and security groups whenever a server is shown or removed. libvirtd and Nova live in a mount
# namespace where libvirt's directories are ours: another libvirtd of this machine neither sees them nor is seen.
V=$S/nova
NOVA_USER=(user_domain_id=default project_domain_id=default auth_type=password auth_url=http://127.0.0.1:5000 project_name=service username=nova)

nova_section() { # name, more lines
    echo "[$1]"
    printf '%s\n' "${NOVA_USER[@]}" "password=$PASSWORD" "region_name=RegionOne" "${@:2}"
}

nova_configure() {
    mkdir -p "$V"/{state/instances,locks,placement,glance/images,neutron,libvirt/{etc,lib,cache,run,log}}
    # Nobody's policy files: an empty policy_dirs would make oslo.policy read the configuration as one.
    local policy="[oslo_policy]
policy_file = /nonexistent/policy.yaml
policy_dirs = /nonexistent"
    {
        cat <<EOF
[DEFAULT]
transport_url = fake:///
host = mg
my_ip = 127.0.0.1
state_path = $V/state
log_file = $S/log/nova.log
use_stderr = false
enabled_apis = osapi_compute
osapi_compute_listen = 127.0.0.1
osapi_compute_workers = 1
api_paste_config = /etc/nova/api-paste.ini
rootwrap_config = /etc/nova/rootwrap.conf
compute_driver = libvirt.LibvirtDriver
reserved_host_memory_mb = 1024
initial_ram_allocation_ratio = 1
block_device_allocate_retries_interval = 1
# A port that nobody binds fails at once.
vif_plugging_is_fatal = true
vif_plugging_timeout = 5
# Used where the periodic look is all there is.
sync_power_state_interval = 10
[api]
auth_strategy = keystone
[api_database]
connection = sqlite:///$V/api.db
sqlite_synchronous = false
[database]
connection = sqlite:///$V/cell1.db
sqlite_synchronous = false
[oslo_concurrency]
lock_path = $V/locks
$policy
[vnc]
enabled = false
[libvirt]
virt_type = qemu
cpu_mode = none
connection_uri = qemu:///system
rbd_user = cinder
rbd_secret_uuid = 11111111-2222-3333-4444-555555555555
[scheduler]
discover_hosts_in_cells_interval = 5
[glance]
api_servers = http://127.0.0.1:9292
EOF
        nova_section keystone_authtoken www_authenticate_uri=http://127.0.0.1:5000 service_token_roles=service service_token_roles_required=true
        nova_section placement
        nova_section neutron
        nova_section cinder
        nova_section service_user send_service_user_token=true
    } >"$V/nova.conf"
    {
        cat <<EOF
[DEFAULT]
log_file = $S/log/placement.log
use_stderr = false
[api]
auth_strategy = keystone
[placement_database]
connection = sqlite:///$V/placement.db
sqlite_synchronous = false
$policy
EOF
        nova_section keystone_authtoken www_authenticate_uri=http://127.0.0.1:5000
    } >"$V/placement/placement.conf"
    {
        cat <<EOF
[DEFAULT]
log_file = $S/log/glance.log
use_stderr = false
[database]
connection = sqlite:///$V/glance.db
sqlite_synchronous = false
[glance_store]
filesystem_store_datadir = $V/glance/images
[paste_deploy]
flavor = keystone
config_file = /etc/glance/glance-api-paste.ini
$policy
EOF
        nova_section keystone_authtoken www_authenticate_uri=http://127.0.0.1:5000
    } >"$V/glance/glance-api.conf"
    {
        cat <<EOF
[DEFAULT]
transport_url = fake:///
core_plugin = ml2
# What lists ports asks for the port forwardings of each.
service_plugins = router,port_forwarding
state_path = $V/neutron
log_file = $S/log/neutron.log
use_stderr = false
api_paste_config = /etc/neutron/api-paste.ini
notify_nova_on_port_status_changes = false
notify_nova_on_port_data_changes = false
[database]
connection = sqlite:///$V/neutron.db
sqlite_synchronous = false
[ml2]
type_drivers = local
tenant_network_types = local
mechanism_drivers = openvswitch
[oslo_concurrency]
lock_path = $V/locks
$policy
EOF
        nova_section keystone_authtoken www_authenticate_uri=http://127.0.0.1:5000
    } >"$V/neutron/neutron.conf"
    # No socket but the one below, no cgroups, no other users, no helper that keeps logs.
    cat >"$V/libvirt/etc/libvirtd.conf" <<EOF
auth_unix_rw = "none"
EOF
    cat >"$V/libvirt/etc/qemu.conf" <<EOF
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
cgroup_controllers = [ ]
namespaces = [ ]
stdio_handler = "file"
EOF
}

nova_schema() {
    [[ ! -e $V/done ]] || return 0
    rm -f "$V"/*.db*
    $python "$here/stack.d/nova_setup.py" "$V" >>"$S/log/nova-setup.log" 2>&1
    touch "$V/done"
}

nova_wsgi() { # name, port, file, words of its command line
    alive "$S/run/$1.pid" uwsgi || uwsgi --plugins python3 \
        --http-socket "127.0.0.1:$2" --wsgi-file "$3" \
        --processes 1 --threads 4 --enable-threads --master --lazy-apps \
        --buffer-size 65535 --add-header 'Connection: close' --die-on-term \
        --daemonize "$S/log/$1-uwsgi.log" --pidfile "$S/run/$1.pid" \
        --pyargv "$4" >/dev/null 2>&1 9>&-
}

# Within the namespace: libvirt's directories are ours.
nova_namespace='
set -e
libvirt=$1
shift
for dir in etc/libvirt=etc var/lib/libvirt=lib var/cache/libvirt=cache var/log/libvirt=log run/libvirt=run; do
    mkdir -p "/${dir%=*}"
    mount --bind "$libvirt/${dir#*=}" "/${dir%=*}"
done
exec "$@"'

nova_up() {
    # Neutron's server and Placement are ready while the libraries of the next are read.
    export OS_PLACEMENT_CONFIG_DIR=$V/placement
    nova_wsgi placement 8778 /usr/bin/placement-api placement-api
    nova_wsgi glance 9292 /usr/bin/glance-wsgi-api "--config-file $V/glance/glance-api.conf"
    nova_wsgi neutron 9696 /usr/bin/neutron-api "--config-file $V/neutron/neutron.conf"
    if ! alive "$S/run/libvirtd.pid" libvirtd; then
        # What ran under one that was killed is not ours to keep.
        rm -rf "$V"/libvirt/run/*
        spawn "$S/run/libvirtd.pid" "$S/log/libvirtd.log" unshare --mount --propagation private \
            bash -c "$nova_namespace" libvirt "$V/libvirt" libvirtd --config /etc/libvirt/libvirtd.conf --pid-file "$V/libvirt/run/pid"
        local i
        for ((i = 0; i < 300; i++)); do
            [[ -S $V/libvirt/run/libvirt-sock ]] && break
            sleep .1
        done
        printf '<secret ephemeral="no" private="no"><uuid>%s</uuid><usage type="ceph"><name>mg-cloud</name></usage></secret>' \
            11111111-2222-3333-4444-555555555555 >"$V/libvirt/secret.xml"
        nova_virsh secret-define "$V/libvirt/secret.xml" >>"$S/log/nova-setup.log" 2>&1
        # In base64, as Ceph writes it and virsh reads it.
        (umask 077 && ceph-authtool -p -n client.cinder "$C/client.cinder.keyring" | tr -d '\n' >"$V/libvirt/key")
        nova_virsh secret-set-value 11111111-2222-3333-4444-555555555555 --file "$V/libvirt/key" >>"$S/log/nova-setup.log" 2>&1 ||
            die "libvirtd: the key of Ceph was not taken: see $S/log"
        nova_probe
    fi
    local part
    for part in 8778=placement 9292/healthcheck=glance 9696=neutron; do
        answers "http://127.0.0.1:${part%=*}" 90 || die "${part#*=} does not answer: see $S/log"
    done
    alive "$S/run/nova.pid" nova_services.py || PYTHONDONTWRITEBYTECODE=1 spawn "$S/run/nova.pid" "$S/log/nova.out" \
        nsenter --mount="/proc/$(cat "$S/run/libvirtd.pid")/ns/mnt" --wdns=/ \
        $python "$here/stack.d/nova_services.py" --config-file "$V/nova.conf"
    answers http://127.0.0.1:8774/ 90 || die "nova does not answer: see $S/log"
    $python "$here/stack.d/nova_accounts.py" "$PASSWORD" ready
}

# libvirt asks QEMU what it can do, and keeps the answer. Now and then QEMU 10 waits in accept() for ever then, for a connection that it
# has already: it is ended, and asked again.
nova_probe() {
    local i process
    for ((i = 0; i < 4; i++)); do
        timeout 15 nsenter --mount="/proc/$(cat "$S/run/libvirtd.pid")/ns/mnt" --wdns=/ \
            virsh -q -c qemu:///system capabilities >/dev/null 2>&1 && return 0
        for process in $(pgrep -f 'qemu-system-.*/var/lib/libvirt/qemu/qmp-'); do
            [[ /proc/$process/ns/mnt -ef /proc/$(cat "$S/run/libvirtd.pid")/ns/mnt ]] && kill -9 "$process"
        done
    done
    die "libvirtd does not say what QEMU can do: see $S/log"
}

# In the namespace of our libvirtd.
nova_virsh() {
    nsenter --mount="/proc/$(cat "$S/run/libvirtd.pid")/ns/mnt" --wdns=/ virsh -q -c qemu:///system "$@"
}

nova_down() {
    stop "$S/run/nova.pid" nova_services.py 20
    if alive "$S/run/libvirtd.pid" libvirtd; then
        local guest
        for guest in $(nova_virsh list --name 2>/dev/null); do
            nova_virsh destroy "$guest" >/dev/null 2>&1 || true
        done
        for guest in $(pgrep -f 'qemu-system-.*/var/lib/libvirt/qemu/qmp-'); do
            [[ /proc/$guest/ns/mnt -ef /proc/$(cat "$S/run/libvirtd.pid")/ns/mnt ]] && kill -9 "$guest"
        done
    fi
    stop "$S/run/libvirtd.pid" libvirtd 10
    stop "$S/run/neutron.pid" uwsgi 10
    stop "$S/run/glance.pid" uwsgi 10
    stop "$S/run/placement.pid" uwsgi 10
}

"""The user of Nova and its neighbours, their places in the catalogue (`accounts`); flavours, and waiting for a host (`ready`)."""
import sys
import time

import requests

password, what = sys.argv[1:]
KEYSTONE = 'http://127.0.0.1:5000/v3'
NOVA = 'http://127.0.0.1:8774/v2.1'

answer = requests.post(KEYSTONE + '/auth/tokens', json={'auth': {
    'identity': {'methods': ['password'], 'password': {'user': {
        'name': 'admin', 'domain': {'id': 'default'}, 'password': password}}},
    'scope': {'project': {'name': 'admin', 'domain': {'id': 'default'}}}}})
answer.raise_for_status()
headers = {'X-Auth-Token': answer.headers['X-Subject-Token'], 'OpenStack-API-Version': 'compute 2.60'}


def call(method, url, body=None):
    answer = requests.request(method, url, json=body, headers=headers)
    if answer.status_code >= 400:
        sys.exit('%s %s: %s %s' % (method, url, answer.status_code, answer.text))
    return answer.json() if answer.text else {}


def ensure(kind, one, name, **more):
    for found in call('GET', KEYSTONE + '/' + kind)[kind]:
        if found['name'] == name:
            return found['id']
    return call('POST', KEYSTONE + '/' + kind, {one: dict(name=name, **more)})[one]['id']


def accounts():
    project = ensure('projects', 'project', 'service', domain_id='default')
    user = ensure('users', 'user', 'nova', domain_id='default', password=password)
    for role in ('admin', 'service'):
        call('PUT', '%s/projects/%s/users/%s/roles/%s' % (KEYSTONE, project, user, ensure('roles', 'role', role)))
    known = {service['type'] for service in call('GET', KEYSTONE + '/services')['services']}
    for kind, name, url in (('compute', 'nova', NOVA), ('placement', 'placement', 'http://127.0.0.1:8778'),
                            ('image', 'glance', 'http://127.0.0.1:9292'), ('network', 'neutron', 'http://127.0.0.1:9696')):
        if kind in known:
            continue
        service = call('POST', KEYSTONE + '/services', {'service': {'type': kind, 'name': name}})['service']['id']
        for interface in ('public', 'internal', 'admin'):
            call('POST', KEYSTONE + '/endpoints', {'endpoint': {
                'service_id': service, 'interface': interface, 'region_id': 'RegionOne', 'url': url}})


def ready():
    # A flavour without a disk of its own: what boots is a volume. And one that the quota allows and no host of tests has room for.
    known = {flavour['name'] for flavour in call('GET', NOVA + '/flavors')['flavors']}
    for name, memory in (('drill', 512), ('huge', 48 << 10)):
        if name not in known:
            call('POST', NOVA + '/flavors', {'flavor': {'name': name, 'ram': memory, 'vcpus': 1, 'disk': 0}})
    # Neutron cannot list ports before it has looked for anything else in its database.
    call('GET', 'http://127.0.0.1:9696/v2.0/networks')
    until = time.time() + 90
    while not [host for host in call('GET', NOVA + '/os-hypervisors')['hypervisors'] if host['state'] == 'up']:
        if time.time() > until:
            sys.exit('no host of Nova reports')
        time.sleep(.5)


{'accounts': accounts, 'ready': ready}[what]()

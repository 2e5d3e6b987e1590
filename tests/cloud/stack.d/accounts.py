"""Users, projects, catalogue and volume types; whatever is there already stays."""
import sys
import time

import requests

password, backends = sys.argv[1], sys.argv[2:]
KEYSTONE = 'http://127.0.0.1:5000/v3'


def login(user, project):
    answer = requests.post(KEYSTONE + '/auth/tokens', json={'auth': {
        'identity': {'methods': ['password'], 'password': {'user': {
            'name': user, 'domain': {'id': 'default'}, 'password': password}}},
        'scope': {'project': {'name': project, 'domain': {'id': 'default'}}}}})
    answer.raise_for_status()
    return answer.headers['X-Subject-Token'], answer.json()['token']['project']['id']


token, admin_project = login('admin', 'admin')
headers = {'X-Auth-Token': token, 'OpenStack-API-Version': 'volume 3.66'}


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


role = {name: ensure('roles', 'role', name) for name in ('admin', 'member', 'service')}
project = {name: ensure('projects', 'project', name, domain_id='default') for name in ('service', 'bank', 'poor')}
# The project "poor" is for what is to be refused: its user is cut down by a test.
for user, where, what in (('bank', 'bank', 'member'), ('bank', 'poor', 'member'),
                          ('cinder', 'service', 'admin'), ('cinder', 'service', 'service')):
    uid = ensure('users', 'user', user, domain_id='default', password=password)
    call('PUT', '%s/projects/%s/users/%s/roles/%s' % (KEYSTONE, project[where], uid, role[what]))
if 'block-storage' not in {service['type'] for service in call('GET', KEYSTONE + '/services')['services']}:
    sid = call('POST', KEYSTONE + '/services', {'service': {'type': 'block-storage', 'name': 'cinder'}})['service']['id']
    for interface in ('public', 'internal', 'admin'):
        call('POST', KEYSTONE + '/endpoints', {'endpoint': {
            'service_id': sid, 'interface': interface, 'region_id': 'RegionOne',
            'url': 'http://127.0.0.1:8776/v3/%(project_id)s'}})

cinder = 'http://127.0.0.1:8776/v3/' + admin_project
until = time.time() + 90
while True:
    try:
        pools = call('GET', cinder + '/scheduler-stats/get_pools')['pools']
        up = {pool['name'].split('@')[1].split('#')[0] for pool in pools}
    except requests.ConnectionError:
        up = set()
    if up >= set(backends):
        break
    if time.time() > until:
        sys.exit('backends do not report: %s' % (set(backends) - up))
    time.sleep(.3)
types = {kind['name'] for kind in call('GET', cinder + '/types')['volume_types']}
for backend in backends:
    if backend not in types:
        call('POST', cinder + '/types', {'volume_type': {
            'name': backend, 'os-volume-type-access:is_public': True,
            'extra_specs': {'volume_backend_name': backend}}})

-- Who this daemon is: DIR/key.json and DIR/tls. The file is the commit point of init, join and leave: it is written
-- whole (atomic, synced), and what it says is what happened.
--
--   phase    nil: a member. "init": the cluster is being made, nobody knows of it yet: init says it afresh.
--            "recover": this member is to become the only voter; the start finishes that.
--            "leave": left; what is in the folder is to be wiped.
--   follows  true for a node whose address nobody chose: it goes with the machine's
--   moves    how often a manager's raft address has changed; nil: never
--   moved    {id, moves, address} of each other manager whose raft address has changed; nil: of none
--   removed  true when it may not serve any more; reason says why
--   trust    the generation of trusted CAs that DIR/tls has (trust.lua); nil: the first, or not known yet
local crypto = require "sym.crypto"
local errors = require "symphony.errors"
local json = require "symphony.json"
local sys = require "sym.sys"

local M = {
  me = nil,      -- key.json as loaded, nil for a daemon that belongs to no cluster
  tls = nil,     -- load_tls's answer, of a node that has started
  trouble = nil, -- why the node could not start although it is a member
}

local FORMAT = 1
local MAX_BYTES = 64 * 1024
local PHASES = { init = true, recover = true, leave = true }

-- The daemon's folder, and the path of @name in it.
function M.dir()
  return sys.options().config_dir or "."
end

function M.path(name)
  return M.dir() .. "/" .. name
end

local function damaged(path, why)
  return nil, errors.new("corrupt", ("%s is damaged: %s"):format(path, why),
    ("put it back from where it was last good; or stop this daemon, move %s away, remove this node on another "
    .. "manager (`symphony node rm`), and join again with an empty folder"):format(M.dir()))
end

local NUMBER_MAX = 1 << 52 -- the numbers are counted up, and JSON keeps no more than 2^53
local FIELDS = {
  node_id = "string", cluster_id = "string", role = "string", name = "string", folder = "string",
  starts = "integer", advertise = "table", managers = "table",
}
local ADDRESSES = { manager = { "raft", "remote", "gossip" }, worker = { "remote", "gossip" } }

-- What this daemon is for: "manager" or "worker"; and the word of its commands: "manager", or its service.
function M.role()
  return M.word() == "manager" and "manager" or "worker"
end
function M.word()
  return sys.options().role or "manager"
end
local OPTIONAL = { removed = "boolean", follows = "boolean", reason = "string", phase = "string",
  gossip_start = "number", moves = "number", moved = "table",
  trust = "number" }

local function is_count(n)
  return math.type(n) == "integer" and n >= 1 and n <= NUMBER_MAX
end

local function are_moved(list)
  for at, m in pairs(list) do
    if type(at) ~= "number" or type(m) ~= "table" or not is_count(m.id) or not is_count(m.moves)
      or type(m.address) ~= "string" then
      return false
    end
  end
  return true
end

-- key.json's text to a document. Pure. nil, why.
function M.parse(text)
  if #text > MAX_BYTES then return nil, "it is too long" end
  local doc, err = json.decode(text)
  if type(doc) ~= "table" then return nil, err and err.message or "it is not a JSON object" end
  if doc.format ~= FORMAT then return nil, ("its format is %s, not %d"):format(tostring(doc.format), FORMAT) end
  for name, kind in pairs(FIELDS) do
    local value = doc[name]
    local found = kind == "integer" and math.type(value) or type(value)
    if found ~= kind then return nil, ("field \"%s\" is missing or of the wrong kind"):format(name) end
  end
  for name, kind in pairs(OPTIONAL) do
    if doc[name] ~= nil and type(doc[name]) ~= kind then
      return nil, ("field \"%s\" is of the wrong kind"):format(name) end
  end
  local addresses, id = ADDRESSES[doc.role], doc.raft_node_id
  if not addresses then return nil, "its role is neither manager nor worker" end
  if doc.role == "manager" and math.type(id) ~= "integer" then
    return nil, "field \"raft_node_id\" is missing or of the wrong kind"
  end
  if doc.role == "worker" and id ~= nil then return nil, "a worker has no raft_node_id" end
  if doc.starts < 0 or doc.starts > NUMBER_MAX or (id and (id < 1 or id > NUMBER_MAX)) then
    return nil, "a number in it is out of range"
  end
  for _, name in ipairs { "trust", "gossip_start", "moves" } do
    local n = doc[name]
    if n ~= nil and not is_count(n) then
      return nil, ("field \"%s\" is out of range"):format(name)
    end
  end
  for _, name in ipairs(addresses) do
    if type(doc.advertise[name]) ~= "string" then return nil, ("field \"advertise.%s\" is missing"):format(name) end
  end
  for at, address in pairs(doc.managers) do
    if type(at) ~= "number" or type(address) ~= "string" then
      return nil, "field \"managers\" holds something else than addresses"
    end
  end
  if not are_moved(doc.moved or {}) then return nil, "field \"moved\" holds something else than addresses" end
  local known = doc.role == "manager" and PHASES[doc.phase] or doc.phase == "leave"
  if doc.phase ~= nil and not known then return nil, "its phase is unknown" end
  return doc
end

-- The document; nil when there is none; nil, err.
function M.load()
  local path = M.path("key.json")
  local text, err = sys.read_file(path)
  if not text then
    if err.code == "not_found" then return nil end
    return nil, errors.new(err.code, ("cannot read %s: %s"):format(path, err.message),
      "the daemon's user must own it: chown it, mode 0600")
  end
  local doc, why = M.parse(text)
  if not doc then return damaged(path, why) end
  return doc
end

-- Writes @doc as key.json, synced. nil, err; then the file is as it was.
function M.save(doc)
  doc.format = FORMAT
  local ok, err = sys.write_file(M.path("key.json"), json.encode(doc) .. "\n", tonumber("600", 8))
  if not ok then
    return nil, errors.new(err.code, "cannot write key.json: " .. err.message,
      "the daemon must be able to write in " .. M.dir())
  end
  return true
end

-- A copy of @doc with @fields: what this daemon is stays as it was until the copy is on the disk.
function M.changed(doc, fields)
  local copy = {}
  for k, v in pairs(doc) do copy[k] = v end
  for k, v in pairs(fields) do copy[k] = v end
  return copy
end

-- Saves @doc and makes it what this daemon is.
function M.become(doc)
  local ok, err = M.save(doc)
  if not ok then return nil, err end
  M.me = doc
  return true
end

-- The document of a serving member; nil, err that says what this daemon is instead.
function M.member()
  local me = M.me
  if me == nil then
    return nil, errors.new("no_cluster", "this daemon belongs to no cluster yet", M.role() == "manager"
      and "`symphony manager init` makes one, `symphony manager join HOST:PORT --token TOKEN` joins one"
      or ("`symphony %s join HOST:PORT --token TOKEN` joins one"):format(M.word()))
  end
  if me.phase == "init" then
    return nil, errors.new("no_cluster", "the making of the cluster was interrupted before it was finished",
      "say `symphony manager init` again: it starts afresh")
  end
  if me.phase == "leave" then
    return nil, errors.new("removed", ("this node is leaving cluster %s"):format(me.cluster_id),
      ("`symphony %s leave` finishes that"):format(M.word()))
  end
  if me.removed then
    return nil, errors.new("removed", ("this node is no member of cluster %s any more: %s"):format(me.cluster_id,
      me.reason or "removed"), M.rejoin())
  end
  return me
end

-- Who this node is, for the log of a start.
function M.introduction()
  local me = M.me
  return ("this is %s (%s) of cluster %s, at %s"):format(me.name, me.node_id, me.cluster_id, me.advertise.remote)
end

-- What to do once this node is no member any more.
function M.rejoin()
  local word = M.word()
  return ("`symphony %s leave` wipes what this folder still holds of it; then `symphony %s join` again"):format(word,
    word)
end

-- Is this daemon a @role? true; nil, err that says where to say it instead.
function M.needs(role)
  if M.role() == role then return true end
  if role == "manager" then
    return nil, errors.new("conflict", ("this daemon is a worker (`symphonyd %s`): the state is with the managers")
      :format(M.word()), "say it at the control socket of a manager")
  end
  return nil, errors.new("conflict", "this daemon is a manager, and no worker",
    "say it at the worker's control socket; `symphony manager` has the commands of this one")
end

-- A folder of one role is of no use to a daemon of the other. true; nil, err.
function M.check_role(doc)
  if doc.role == M.role() then return true end
  return nil, errors.new("exists", ("%s is the folder of a %s, and this is `symphonyd %s`"):format(M.dir(), doc.role,
    M.word()), doc.role == "manager" and "start it as `symphonyd manager`; or give this one a --config-dir of its own"
    or "start it with the service that it was; or give this one a --config-dir of its own")
end

-- Where what makes a folder this one is kept: a worker has no log, but its key.
local function own_folder(doc)
  return M.path(doc.role == "manager" and "raft" or "tls")
end

-- The identity of the folder that @doc is of, for its field folder; nil, err.
function M.folder_of(doc)
  return sys.folder_identity(own_folder(doc))
end

local function check_worker(doc)
  local path = own_folder(doc)
  local now, err = sys.folder_identity(path)
  if not now then return damaged(path, err.message) end
  if now == doc.folder then return true end
  return nil, errors.new("denied", path .. " is not the folder that this node was made in: it was copied from another "
    .. "machine or put back from a backup, and two would be the same node",
    "use the original folder; or move this one away, and join again with an empty one (`symphony node rm` on a manager "
    .. "removes a node that will not come back)")
end

-- A folder that was copied, or put back from a backup, must not vote: raft would count its votes twice. Nor must two
-- workers be one.
function M.check_folder(doc)
  if doc.role ~= "manager" then return check_worker(doc) end
  local path = own_folder(doc)
  local now, err = sys.folder_identity(path)
  if not now then
    return nil, errors.new("corrupt", ("%s is not there (%s), but key.json says that this manager has one"):format(path,
      err.message), "a manager without its log must not vote: move " .. M.dir() .. " away, remove this member on "
      .. "another manager, and join again with an empty folder")
  end
  if now ~= doc.folder then
    return nil, errors.new("denied", path .. " is not the folder that this manager was made in: it was copied from "
      .. "another machine or put back from a backup, and would vote twice",
      "use the original folder; or move this one away, remove the member on another manager, and join again. If no "
      .. "other manager is left: `symphony manager init` in an empty folder, then `symphony cluster restore`")
  end
  return true
end

-- DIR/tls -------------------------------------------------------------------------------------------------------

local function tls_path(name)
  return M.path("tls/" .. name)
end

local function make_tls_folder()
  local ok, err = sys.mkdir(M.path("tls"), tonumber("700", 8))
  if not ok then return nil, errors.new(err.code, ("cannot make %s: %s"):format(M.path("tls"), err.message)) end
  return true
end

local function write_tls(name, text)
  local ok, err = sys.write_file(tls_path(name), text, tonumber("600", 8))
  if not ok then return nil, errors.new(err.code, ("cannot write %s: %s"):format(tls_path(name), err.message)) end
  return true
end

-- The key of this node, made and written when there is none. Returns it; nil, err.
function M.node_key()
  local path = tls_path("node.key")
  local pem, err = sys.read_file(path)
  if pem then
    local key, why = crypto.key_load(pem)
    if not key then return damaged(path, why.message) end
    return key
  end
  if err.code ~= "not_found" then return nil, errors.new(err.code, ("cannot read %s: %s"):format(path, err.message)) end
  local key = crypto.key_generate()
  local ok
  ok, err = make_tls_folder()
  if ok then ok, err = write_tls("node.key", key:pem()) end
  if not ok then return nil, err end
  return key
end

-- Writes DIR/tls: @tls {ca, cert}, PEM. The CAs first: where it ends between the two, they still hold the one of the
-- certificate that there was. nil, err.
function M.save_tls(tls)
  local ok, err = make_tls_folder()
  if ok then ok, err = write_tls("ca.crt", tls.ca) end
  if ok then ok, err = write_tls("node.crt", tls.cert) end
  return ok, err
end

-- Is the certificate with @info that of the node @doc? true; nil, err. Pure.
function M.fits(doc, info)
  local why
  if info.cn ~= doc.node_id or info.o ~= doc.cluster_id or info.ou ~= doc.role then
    why = "it is of another node than key.json"
  elseif info.raft_id ~= doc.raft_node_id then
    why = ("it is for raft id %s, but key.json says %s"):format(info.raft_id or "none", doc.raft_node_id or "none")
  end
  if why then return nil, errors.new("corrupt", why) end
  return true
end

-- {key, cert, ca, info (of the certificate)}, checked against each other and @doc; nil, err that names the file.
function M.load_tls(doc)
  local pems = {}
  for _, name in ipairs { "node.key", "node.crt", "ca.crt" } do
    local text, err = sys.read_file(tls_path(name))
    if not text then return damaged(tls_path(name), err.message) end
    pems[name] = text
  end
  local key, err = crypto.key_load(pems["node.key"])
  if not key then return damaged(tls_path("node.key"), err.message) end
  local ca
  ca, err = crypto.cert_info(pems["ca.crt"])
  if not ca then return damaged(tls_path("ca.crt"), err.message) end
  if not ca.is_ca then return damaged(tls_path("ca.crt"), "it is no CA certificate") end
  local cert
  cert, err = crypto.cert_info(pems["node.crt"])
  if not cert then return damaged(tls_path("node.crt"), err.message) end
  local ok
  ok, err = crypto.cert_check_key(pems["node.crt"], key)
  if not ok then return damaged(tls_path("node.crt"), "it does not belong to node.key: " .. err.message) end
  ok, err = crypto.cert_check_issuer(pems["node.crt"], pems["ca.crt"])
  if not ok then return damaged(tls_path("node.crt"), "it is not signed by ca.crt: " .. err.message) end
  ok, err = M.fits(doc, cert)
  if not ok then return damaged(tls_path("node.crt"), err.message) end
  return { key = key, cert = pems["node.crt"], ca = pems["ca.crt"], info = cert }
end

-- Folders ---------------------------------------------------------------------------------------------------------

-- DIR/raft, made when it is not there; returns its identity, or nil, err.
function M.make_raft_folder()
  local path = M.path("raft")
  local ok, err = sys.mkdir(path, tonumber("700", 8))
  local text
  if ok then text, err = sys.folder_identity(path) end
  if not text then return nil, errors.new(err.code, ("cannot make %s: %s"):format(path, err.message)) end
  return text
end

-- A log or a state without a key.json is somebody's data, not an empty folder.
function M.check_unused()
  for _, name in ipairs { "raft/metadata1", "raft/metadata2", "state/data.mdb" } do
    if sys.stat(M.path(name)) then
      return nil, errors.new("exists", ("%s is there, but %s is missing"):format(M.path(name), M.path("key.json")),
        "put key.json back if this manager is still a member; else move the folder away")
    end
  end
  return true
end

-- Removes all that a membership leaves behind, key.json last.
function M.wipe()
  for _, name in ipairs { "raft", "state", "tls" } do -- not what a service keeps: that is somebody's data
    local ok, err = sys.remove_tree(M.path(name))
    if not ok and err.code ~= "not_found" then
      return nil, errors.new(err.code, ("cannot remove %s: %s"):format(M.path(name), err.message))
    end
  end
  local ok, err = sys.remove(M.path("key.json"))
  if not ok and err.code ~= "not_found" then
    return nil, errors.new(err.code, "cannot remove key.json: " .. err.message)
  end
  M.me, M.tls, M.trouble = nil, nil, nil
  return true
end

return M

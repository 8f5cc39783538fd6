-- GET /v1/backup, and what `cluster restore` needs: POST /v1/restore/begin, GET /v1/restore/keys, POST
-- /v1/restore/apply, POST /v1/restore/end. Administrators at the control socket only.
local async = require "symphony.async"
local backup = require "symphony.cluster.backup"
local errors = require "symphony.errors"
local follow = require "symphony.cluster.follow"
local restore = require "symphony.cluster.restore"
local state = require "symphony.cluster.state"
local store = require "sym.store"
local sys = require "sym.sys"

local M = {}

local ADMIN = { control = true }
local PAGE, PAGE_BYTES = 64, 1 << 20
local BACKLOG_MAX = 32 << 20
local SETTLE_MS = 5000

-- The line of a change, if it is one of those that belong into a backup.
local function change_line(event)
  if not backup.is_covered(event.key) then return nil end
  local line = event.deleted and backup.delete_line(event.key, event.revision)
    or backup.put_line(event.key, event.value, event.revision)
  return line, #line
end

local function stream(req, cluster)
  local began = store.revision()
  local f <close> = assert(follow.open("/", began, BACKLOG_MAX, change_line))
  local function send(text)
    if f.failed then error(errors.from(f.failed), 0) end
    local ok, err = async.await(req.write, req, text)
    if not ok then error(err, 0) end
  end
  -- Those that have arrived by now, and none that arrives meanwhile.
  local function send_changes()
    local upto, lines, bytes = f.seen, {}, 0
    while true do
      local line = f:pop(upto)
      if not line then break end
      lines[#lines + 1], bytes = line, bytes + #line
      if bytes >= PAGE_BYTES then
        send(table.concat(lines))
        lines, bytes = {}, 0
      end
    end
    if #lines > 0 then send(table.concat(lines)) end
  end
  send(backup.header_line { cluster_id = cluster.id, cluster_name = cluster.name, created = math.floor(sys.now()),
    version = sys.version })
  for _, prefix in ipairs(backup.PREFIXES) do
    local after, more
    repeat
      local rows
      rows, more = state.list_raw(prefix, { after = after, limit = PAGE, bytes = PAGE_BYTES })
      if not rows then error(more, 0) end
      local lines, bytes = {}, 0
      for i, row in ipairs(rows) do
        lines[#lines + 1] = backup.put_line(row.key, row.value, row.mod_revision)
        bytes = bytes + #lines[#lines]
        if bytes >= PAGE_BYTES or i == #rows then
          send(table.concat(lines))
          lines, bytes = {}, 0
        end
      end
      if #rows > 0 then after = rows[#rows].key end
      send_changes()
    until not more
  end
  -- Everything up to here, and nothing behind it: the state at one revision.
  local last = store.revision()
  local deadline = sys.mono_ms() + SETTLE_MS
  while f.seen < last do
    if f.failed then error(errors.from(f.failed), 0) end
    if sys.mono_ms() > deadline then errors.raise("timeout", "the changes of the last moment did not arrive") end
    async.sleep(1)
  end
  last = f.seen
  f:close()
  send_changes()
  send(backup.end_line(last))
end

local function send_backup(router, req)
  assert(state.read())
  local cluster = assert(state.cluster())
  local task, over = async.current(), false
  req:on_gone(function()
    if not over then task:cancel() end
  end)
  req:start(200, "application/x-ndjson")
  local ok, err = xpcall(stream, errors.handler, req, cluster)
  over = true
  if ok then
    req:finish()
  else
    require("sym.log").warn("backup: " .. errors.from(err).message)
    req:abort()
  end
  return router.STREAM
end

function M.routes(router)
  router.route("GET", "/v1/backup", { auth = ADMIN, timeout_ms = false }, function(req)
    return send_backup(router, req)
  end)

  router.route("POST", "/v1/restore/begin", { auth = ADMIN }, function(req)
    return 200, restore.begin(router.json(req))
  end)

  router.route("GET", "/v1/restore/keys", { auth = ADMIN }, function(req)
    assert(state.read())
    local after = req:param("after")
    return 200, restore.page(req:param("prefix") or "", after ~= "" and after or nil)
  end)

  router.route("POST", "/v1/restore/apply", { auth = ADMIN }, function(req)
    return 200, restore.apply(router.json(req))
  end)

  router.route("POST", "/v1/restore/end", { auth = ADMIN }, function(req)
    return 200, restore.finish(router.json(req))
  end)
end

return M

-- What a daemon of any role does at its start with what it finds in its folder.
local identity = require "symphony.cluster.identity"
local log = require "sym.log"

local M = {}

-- What a start makes of key.json. Pure: "idle", "removed", "unfinished", "wipe", "recover" or "resume".
function M.verdict(doc)
  if not doc then return "idle" end
  if doc.phase == "init" then return "unfinished" end
  if doc.phase == "leave" then return "wipe" end
  if doc.removed then return "removed" end
  if doc.phase == "recover" then return "recover" end
  return "resume"
end

-- What follows from the verdicts that are the same for every role, given key.json. true; nil, err.
M.actions = {
  wipe = function()
    log.info("this node has left its cluster: wiping what it kept")
    return identity.wipe()
  end,
  removed = function(doc)
    identity.me = doc
    log.error(("%s -- %s"):format(doc.reason or "this node was removed", identity.rejoin()))
    return true
  end,
}

-- For a node that could not start, failing with @code. Pure.
function M.start_hint(code)
  if code == "in_use" then return "start symphonyd with other --listen-...-port flags, or stop what uses the port" end
  if code == "corrupt" then
    return "nothing was repaired: put the file back, or move the folder away, remove this member on another manager "
      .. "(`symphony node rm`), and join again with an empty folder"
  end
  if code == "no_space" then return "make room on the disk and start the daemon again" end
end

return M
